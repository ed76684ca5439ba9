"""Models of n-grams for every wing: counted, smoothed, read from and written to ARPA files.

KneserNey      a row of tokens, counted: shares and rests, a module that a net can hold
BackoffModel   what an ARPA file holds: probabilities and backoffs, by states, for many at once
Trie, Arcs     many short sequences of numbers, in one sorted table; ways between nodes
"""

from resbackbones.ngrams.backoff import BackoffModel
from resbackbones.ngrams.kneser_ney import KneserNey
from resbackbones.ngrams.trie import Arcs, Trie

__all__ = ["Arcs", "BackoffModel", "KneserNey", "Trie"]
