from ._attention_maps import attention_distance as attention_distance
from ._cache import cache as cache
from ._contrastive_loss import contrastive_loss as contrastive_loss
from ._distill import distill as distill
from ._distillation_term import (
    AttentionMaps as AttentionMaps,
    Contrastive as Contrastive,
    HiddenStates as HiddenStates,
    Relations as Relations,
)
from ._exported_teacher import ExportedTeacher as ExportedTeacher
from ._hidden_states import hidden_state_distance as hidden_state_distance
from ._relations import relation_divergence as relation_divergence
from ._soft_targets import soft_target_divergence as soft_target_divergence
from ._teacher_cache import TeacherCache as TeacherCache
