"""A rehearsal: every step's own code, here, on tiny sizes in Triton's interpreter, and stand-ins for what needs a GPU.

A stand-in runs the program that it is given, as the tool does, and then prints a report of the tool's form.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from ..rehearsal import VARIABLE

NCU = '''#!{python}
"""Stands in for Nsight Compute: runs the program, then prints as many launches as were asked for."""
import subprocess, sys
words = sys.argv[1:]
program = words.index({python!r})
if subprocess.run(words[program:]).returncode:
    sys.exit("==ERROR== The application returned an error code.")
print("==PROF== Connected to process 1")
print('"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"')
for launch in range(int(words[words.index("-c") + 1])):
    for section, name, unit, value in (
        ("GPU Speed Of Light Throughput", "Duration", "us", "0"),
        ("Scheduler Statistics", "Issued Warp Per Scheduler", "", "0"),
    ):
        print(f'"{{launch}}","1","stand_in(int)","{{section}}","{{name}}","{{unit}}","{{value}}"')
'''
SANITIZER = '''#!{python}
"""Stands in for compute-sanitizer: runs the program, and counts no errors where it ends well."""
import subprocess, sys
words = sys.argv[1:]
code = subprocess.run(words[words.index({python!r}):]).returncode
print("========= COMPUTE-SANITIZER")
print(f"========= ERROR SUMMARY: {{int(code != 0)}} error" + "s" * (code == 0))
sys.exit(code)
'''
STAND_INS = {"ncu": NCU, "compute-sanitizer": SANITIZER, "nvidia-smi": "#!/bin/sh\necho no GPU in a rehearsal\n"}


def begin(folder: Path) -> None:
    """Sets this process's environment, which the steps inherit.

    Args:
        folder: takes the stand-ins, which come first on the path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in STAND_INS.items():
        path = folder / name
        path.write_text(body.format(python=sys.executable) if "{python" in body else body)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    os.environ |= {
        VARIABLE: "1",
        "TRITON_INTERPRET": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join((str(folder), os.environ.get("PATH", ""))),
    }
