"""Stock arq as it comes: on asyncio's own loop."""

from __future__ import annotations

import asyncio

from benchmarks.peers.arq import Arq


class ArqDefault(Arq):
    run = asyncio.run


PEER = ArqDefault
