"""What the compile gate keeps of the launchers: nothing of this machine's limits and tuned configurations."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types

import pytest

from tests.support.programs import ROOT
from tools.compile_gate import launches
from tools.compile_gate.targets import TARGETS
from tpkernels.ops.gpu import limits, tuning

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
# Who asks this machine while all calls are made for another, and what is chosen for two targets.
PROGRAM = """
import json, sys
from tools.compile_gate.calls import calls
from tools.compile_gate.launches import configuration, launches
from tools.compile_gate.targets import TARGETS
from tpkernels.ops.gpu import limits, tuning

own = {limits.limits_of.__code__: "limits_of", tuning.lookup.__code__: "lookup"}
asked = []
def note(frame, event, _):
    if event == "call" and frame.f_code in own:
        asked.append(own[frame.f_code])

sys.setprofile(note)
roomy = launches(TARGETS["sm_90"])
before = list(asked)
limits.limits_of("cpu")
sys.setprofile(None)
small = launches(TARGETS["sm_80-64k"], [call for call in calls() if call.name.startswith("resident")])
chosen = [sorted({repr(configuration(one)) for one in found if one.kernel.__name__ == "resident_kernel"})
          for found in (roomy, small)]
missing = {call.name for call in calls()} - {launch.case for launch in roomy}
print(json.dumps({"before": before, "after": asked, "same": chosen[0] == chosen[1], "missing": sorted(missing)}))
"""


@pytest.mark.slow
def test_nobody_asks_this_machine() -> None:
    """The functions themselves never run, whichever module and name a launcher has them from."""
    # Where Triton interprets, there is nothing that would be launched.
    env = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    env |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    # What is watched for is seen where it is asked.
    assert found == {"before": [], "after": ["limits_of"], "same": False, "missing": []}


def test_modules_of_any_depth_are_stood_in_for(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("tpkernels.ops.gpu.deep.planted")
    module.renamed, module.asks = limits.limits_of, tuning.lookup
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with launches.recording(TARGETS["gfx942"]):
        assert module.renamed("cuda") == TARGETS["gfx942"].limits
        assert module.asks("key", "cuda") is None and tuning.lookup is module.asks
    assert module.renamed is limits.limits_of and module.asks is tuning.lookup


def test_launchers_that_read_nothing_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "limits_of", lambda device: TARGETS["sm_80"].limits)
    with pytest.raises(RuntimeError, match="expected launchers that read it"), launches.recording(TARGETS["sm_90"]):
        pass
