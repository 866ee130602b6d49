"""The machine, and what is done with a process of it.

memory.py        how much there is, and whether the system killed for it
file_memory.py   memory that lies in a nameless file
environment.py   the libraries a result depends on, kept from phoning home
cache.py         where intermediate results are kept
files.py         the one atomic write, and a directory put in place at once
json_file.py     a JSON object, read with bounds
progress.py      progress as data
patching.py      one attribute of a foreign library, replaced for one call
messages.py      what passes between a worker process and its parent
worker.py        in the worker: one function, or one after the other
starting.py      how every worker is started, and its end explained
process.py       one function in a fresh process, supervised
standing.py      a process that holds one object and is asked about it
exit.py          what a sudden end means
"""
