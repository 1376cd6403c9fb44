"""Where files go and how much is done, by the environment.

`OUT`            weights, and the samples of stages run by hand (/tmp/nano)
`NANO_SCRATCH`   pools of scenes, which are made again at need (/tmp/nano-scratch)
`NANO_SCALE`     factor of minutes, scenes and batches, to rehearse the training (1)"""

import os
from pathlib import Path

OUT = Path(os.environ.get("OUT", "/tmp/nano"))
SCRATCH = Path(os.environ.get("NANO_SCRATCH", "/tmp/nano-scratch"))
SCALE = float(os.environ.get("NANO_SCALE", "1"))
