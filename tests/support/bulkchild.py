"""`python -m tests.support.bulkchild`: a worker whose tokenizer is the stub, without torch."""

from __future__ import annotations

import sys
import types

from streamenc.bulk.workers.partchild import main
from tests.support.bulkstub import StubTokenizer

COMMAND = (sys.executable, "-m", "tests.support.bulkchild")

if __name__ == "__main__":
    stub = types.ModuleType("streamenc.bulk.encoding.tokenizer")
    stub.Tokenizer = StubTokenizer  # type: ignore[attr-defined]
    sys.modules[stub.__name__] = stub
    main()
