"""Commands that signal themselves, at moments that a test cannot time from outside."""

import signal
import sys

_CODE = """
import importlib, os, re, runpy, signal, sys, threading

function, when, pattern, sign, notice, module, *flags = sys.argv[1:]
owner, name = function.rsplit(".", 1)
owner = importlib.import_module(owner)
call = getattr(owner, name)

def stop():
    if float(notice):
        kill = threading.Timer(float(notice), os.kill, (os.getpid(), signal.SIGKILL))
        kill.daemon = True
        kill.start()
    os.kill(os.getpid(), int(sign))

def stops(*args, **kwargs):
    now = any(re.search(pattern, str(arg)) for arg in args[:2])
    if now and when == "before":
        stop()
    result = call(*args, **kwargs)
    if now and when == "after":
        stop()
    return result

setattr(owner, name, stops)
sys.argv = [module, *flags]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def command(
    module: str,
    *flags: object,
    function: str,
    argument: str,
    when: str = "after",
    sign: signal.Signals = signal.SIGKILL,
    notice_seconds: float = 0.0,
) -> list[str]:
    """The command `python -m module flags`, which signals itself at a call.

    Args:
      module: a command of the project.
      *flags: of the command.
      function: "module.name" of what is called.
      argument: regular expression that is found in one of its first two arguments.
      when: "before" or "after" the call.
      sign: the signal.
      notice_seconds: SIGKILL follows after that time, as in a preemption; 0 = not.
    """
    hook = [function, when, argument, str(int(sign)), str(notice_seconds)]
    return [sys.executable, "-c", _CODE, *hook, module, *map(str, flags)]
