"""Stock arq as it comes: on asyncio's own loop."""

from __future__ import annotations

from benchmarks.peers.arq import Arq


class ArqDefault(Arq):
    fast_loop = False


PEER = ArqDefault
