"""The command as a user runs it: a process of its own, its output and its exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import click
import pytest

from monailabel_xnat import __version__
from monailabel_xnat.cli import main as cli
from monailabel_xnat.cli.common import with_debug
from monailabel_xnat.errors import InvalidIdError, ServerError, SettingsError

HEAVY = ("monai", "monailabel", "torch", "xnat", "requests", "SimpleITK", "numpy", "starlette", "uvicorn")


def run(*words, text=None):
    command = [sys.executable, "-m", "monailabel_xnat", *words]
    return subprocess.run(command, capture_output=True, text=True, input=text, timeout=60, check=False)


@pytest.fixture
def command(monkeypatch):
    """A sub-command whose body is defined by the test."""

    def install(action):
        module = type(sys)("a_command")
        depth = click.option("--depth", type=int, default=0)
        module.command = click.command("try")(depth(with_debug(click.pass_context(action))))
        monkeypatch.setitem(sys.modules, "a_command", module)
        monkeypatch.setattr(cli, "COMMANDS", (cli.Command("try", "a_command", "Try something."),))

    return install


def test_version():
    answer = run("--version")
    assert (answer.returncode, answer.stdout) == (0, f"monailabel-xnat {__version__}\n")


def test_help_names_every_command():
    answer = run("--help")
    assert answer.returncode == 0
    for entry in cli.COMMANDS:
        assert entry.name in answer.stdout
        assert " ".join(entry.summary.split()) in " ".join(answer.stdout.split())


def all_commands(group=cli.program, words=()):
    for name in group.list_commands(None):
        found = group.get_command(None, name)
        if isinstance(found, click.Group):
            yield from all_commands(found, (*words, name))
        if name != "start_server":  # it has MONAI Label's parser, and is tested where sample apps start
            yield (*words, name)


@pytest.mark.parametrize("words", list(all_commands()), ids=" ".join)
def test_each_command_has_help_that_explains_its_options(words, capsys):
    assert cli.main([*words, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"Usage: monailabel-xnat {' '.join(words)}" in said
    context = click.Context(cli.program, info_name="monailabel-xnat")
    found = cli.program
    for word in words:
        found = found.get_command(context, word)
    assert found.help
    assert all(option.help for option in found.params if isinstance(option, click.Option))


@pytest.mark.parametrize("words", list(all_commands()), ids=" ".join)
def test_the_help_of_each_command_has_an_example(words, capsys):
    cli.main([*words, "--help"])
    assert f"monailabel-xnat {' '.join(words)}" in capsys.readouterr().out.split("Example", 1)[1]


@pytest.mark.parametrize("group", ["labels", "outbox", "cache"])
def test_no_line_about_a_command_is_cut_off(group, capsys):
    assert cli.main([group, "--help"]) == 0
    assert "..." not in capsys.readouterr().out.split("Commands:")[1]


@pytest.mark.parametrize(
    "words",
    [(), ("nonsense",), ("sandbox", "--nonsense"), ("sandbox", "--port", "many"), ("sandbox", "--port", "99999")],
)
def test_wrong_words_are_answered_with_the_usage(words):
    answer = run(*words)
    assert answer.returncode == cli.EXIT_USAGE
    assert "Usage: monailabel-xnat" in answer.stderr + answer.stdout
    assert "Traceback" not in answer.stderr


def test_starting_imports_nothing_heavy():
    program = (
        "import json, sys\n"
        "from monailabel_xnat.cli.main import main\n"
        "import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert not set(HEAVY) & set(json.loads(answer.stdout))


def test_only_the_command_that_runs_is_imported(monkeypatch, capsys):
    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, cli.Command("broken", "no.such.module", "never imported")))
    assert cli.main(["--help"]) == 0
    assert "never imported" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (SettingsError("no address", hint="give --server"), cli.EXIT_USAGE, ""),
        (InvalidIdError("'a/b' is no image id"), cli.EXIT_USAGE, ""),
        (ServerError("XNAT is away"), cli.EXIT_FAILURE, ""),
        (PermissionError(13, "Permission denied", "/data"), cli.EXIT_FAILURE, "/data: Permission denied"),
    ],
)
def test_an_error_is_one_line_and_a_status(command, capsys, error, status, told):
    def fail(ctx, depth):
        raise error

    command(fail)
    assert cli.main(["try"]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"monailabel-xnat: error: {told or error}\n"


def test_an_error_of_several_lines_is_still_one(command, capsys):
    def fail(ctx, depth):
        raise ServerError("XNAT answered:\n  <html>\n  503")

    command(fail)
    assert cli.main(["try"]) == cli.EXIT_FAILURE
    assert capsys.readouterr().err == "monailabel-xnat: error: XNAT answered: <html> 503\n"


@pytest.mark.parametrize("words", [["--debug", "try"], ["try", "--debug"]])
def test_debug_before_or_after_the_command_shows_where_it_happened(command, words):
    def fail(ctx, depth):
        raise ServerError("XNAT is away")

    command(fail)
    with pytest.raises(ServerError):
        cli.main(words)


def test_a_fault_of_ours_is_not_hidden(command):
    def fail(ctx, depth):
        raise ZeroDivisionError

    command(fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["try"])


def test_the_command_gets_its_arguments_and_gives_the_status(command):
    command(lambda ctx, depth: ctx.exit(depth))
    assert cli.main(["try", "--depth", "7"]) == 7


@pytest.mark.parametrize("name", ["torch", "monai", "monailabel"])
def test_the_demo_names_what_is_not_installed(monkeypatch, capsys, name, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not there
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == cli.EXIT_USAGE
    said = capsys.readouterr().err
    assert f"the demo trains a model, and {name} cannot be imported" in said
    assert "pip install monailabel-xnat" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_control_c_while_the_command_is_being_imported_is_quiet(tmp_path):
    """It showed a traceback of click's import."""
    (tmp_path / "click.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "monailabel_xnat", "ls"]
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    environ = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout.readline() == "importing\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, errors) == (cli.EXIT_INTERRUPTED, "")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_control_c_is_quiet():
    command = [sys.executable, "-m", "monailabel_xnat", "sandbox"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while "Ctrl-C" not in process.stdout.readline():
                assert process.poll() is None, process.stderr.read()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode in (0, cli.EXIT_INTERRUPTED)
    assert "Traceback" not in errors
    assert "KeyboardInterrupt" not in errors


@pytest.mark.skipif(os.name != "posix", reason="a shell's pipe")
def test_a_pipe_that_closes_early_causes_no_traceback():
    program = (
        "import sys\n"
        "from monailabel_xnat.cli import main as cli\n"
        "module = type(sys)('talk')\n"
        "import click\n"
        "@click.command('talk')\n"
        "def command():\n"
        "    for _ in range(100000): click.echo('x' * 80)\n"
        "module.command = command\n"
        "sys.modules['talk'] = module\n"
        "cli.COMMANDS = (cli.Command('talk', 'talk', 'talk'),)\n"
        "sys.exit(cli.main(['talk']))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == cli.EXIT_FAILURE
    assert errors == b""


def test_the_module_of_the_command_can_be_run():
    asked = [sys.executable, "-m", "monailabel_xnat.cli.main"]
    found = subprocess.run([*asked, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.startswith("monailabel-xnat ")
    assert subprocess.run(asked, capture_output=True, timeout=60).returncode == 2
