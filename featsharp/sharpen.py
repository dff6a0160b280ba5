"""The command `python -m featsharp.sharpen ADAPTER PICTURES... --out DIR`: pictures → PNGs of their sharpened maps.

In Python `featsharp.sharpen` is the function of that name, whoever imports what first; the command's own code is
`featsharp.sharpen_pictures`.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from featsharp.sharpen_pictures import main

    sys.exit(main())
else:
    from featsharp import sharpen

    sharpen.__spec__ = __spec__  # importlib.util.find_spec asks what stands in sys.modules
    sys.modules[__name__] = sharpen  # else an import of this module would hide the function behind it
