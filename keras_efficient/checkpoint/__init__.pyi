from ._preemption import EXIT_PREEMPTED as EXIT_PREEMPTED
