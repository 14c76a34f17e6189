"""The caching job, which writes a mixture's token store: reads, renders, tokenizes, writes. Does not use seqio.

`build.run` brings a store up to date with a Beam pipeline (`pipeline.py`) over shards of tasks (`work_item.py`), each
of which becomes a few files (`shard.py`).
"""
