"""One module a layout. A reader of packages takes ({package name: file}, card), one of a user's data (path, card).

Both return the data set with that card; counts are filled in by `store`.
"""
