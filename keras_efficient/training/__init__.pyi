from ._accumulate import accumulate as accumulate
from ._adversarial import adversarial as adversarial
from ._consistency import consistency as consistency
from ._contrastive import contrastive as contrastive
from ._ewc import ewc as ewc
from ._pack import PackReport as PackReport, pack as pack
from ._remat import remat as remat
from ._sam import sam as sam
from ._unpad import UnpadReport as UnpadReport, unpad as unpad
