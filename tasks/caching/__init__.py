"""The job that writes a mixture's token store: read, render, tokenise, write. No seqio.

`build.run` brings a store up to date: a Beam pipeline (`pipeline.py`) over shards of tasks (`work_item.py`), each of
which becomes a few files (`shard.py`).
"""
