"""Retrieval of event sequences (NeuroSeqRet): unwarp a query's clock, compare two sequences, index them by codes.

Source: Gupta, Bedathur and De, Learning Temporal Point Processes for Efficient Retrieval of Continuous Time Event
Sequences (AAAI 2022).
"""

from relpos.tasks.events.retrieval.codes import Codes
from relpos.tasks.events.retrieval.index import Index
from relpos.tasks.events.retrieval.relevance import NeuroSeqRet
from relpos.tasks.events.retrieval.unwarping import Unwarping

__all__ = ["Codes", "Index", "NeuroSeqRet", "Unwarping"]
