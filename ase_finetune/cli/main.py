"""The entry point: which verb, and what its end is called."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from jsonargparse import Namespace

from ase_finetune.cli.help import top_help, verb_help
from ase_finetune.cli.messages import for_command_line
from ase_finetune.cli.options import nearest
from ase_finetune.cli.parsing import PROGRAM, SHELLS, VerbParser, as_dict, dashed, split_verb, usage_error
from ase_finetune.cli.template import template
from ase_finetune.cli.terminal import Terminal, say
from ase_finetune.cli.verbs import BUG, ERROR, VERBS, load_verb
from ase_finetune.errors import FinetuneError, RunStoppedError
from ase_finetune.version import __version__

#: jsonargparse does not say the types of its constructor.
_namespace: Callable[..., Namespace] = Namespace

_ISSUES = "please report it, with what --debug shows"


class CommandLine:
    """All verbs and their options; a verb is imported when it is used."""

    def parse_args(self, arguments: Sequence[str]) -> Namespace:
        """The verb as ``command``, and its options under the verb's name.

        What only shows something (help, version, template, completion) does so and exits with 0; what cannot be
        understood is an error in one line, and exits with 2.
        """
        name, words = split_verb(arguments)
        if name is None:
            return self._without_verb([dashed(word) if word.startswith("--") else word for word in words])
        if name not in VERBS:
            offered = nearest(str(name), VERBS) or f"; use one of {', '.join(VERBS)}"
            usage_error(f"there is no verb {name!r}{offered}")
        quiet = bool({"-q", "--quiet", "--quiet=true"} & set(words))
        with Terminal(0 if quiet else 1).working("starting"):
            parser = VerbParser(name, load_verb(name))
        if {"-h", "--help"} & set(words):
            _show(verb_help(parser))
        values = parser.parse(words)
        if values.print_config:
            _show(template(parser, as_dict(values)))
        parser.check_needed(values)
        return _namespace(**{"command": name, name: values})

    def _without_verb(self, words: list[str]) -> NoReturn:
        first, _, value = (words[0] if words else "--help").partition("=")
        if first in ("-h", "--help"):
            _show(top_help())
        if first == "--version":
            _show(f"{PROGRAM} {__version__}\n")
        if first in ("--print_completion", "--print_shtab"):
            shell = value or "".join(words[1:2])
            if shell not in SHELLS:
                usage_error(f"--print-completion takes one of {', '.join(SHELLS)}")
            # Not before: it needs all verbs, and so torch.
            from ase_finetune.cli.completion import completion_script

            _show(completion_script(shell))
        known = ("--help", "--version", "--print-completion", "--verbose", "--quiet", "--debug")
        offered = nearest(first, known) or f"; verbs are {', '.join(VERBS)}"
        usage_error(f"a verb must come before {words[0]}{offered}")


def build_parser() -> CommandLine:
    """The parser; the options of ``fit`` are the fields of :class:`~ase_finetune.FinetuneConfig`."""
    return CommandLine()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments
        The words after the program's name; those it was started with if ``None``.

    Returns
    -------
    The exit code: 0 done; 1 after an error, which is printed in one line; 2 if the command line is not understood (as
    :class:`SystemExit`); 3 if structures did not converge or checks did not pass; 70 after a bug; 128 plus the number
    of the signal that stopped it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is left of it must not be tried again at the exit.
        _close_quietly()
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        say(f"{PROGRAM}: interrupted")
        return 128 + signal.SIGINT
    return code


def _run(words: list[str]) -> int:
    debug, names = any(word.startswith("--debug") for word in words), ()
    try:
        options = CommandLine().parse_args(words)
        values = options[options.command]
        debug, names = values.debug, tuple(values.keys())
        terminal = Terminal(0 if values.quiet else 2 if values.verbose else 1)
        return load_verb(options.command).run(values, terminal)
    except RunStoppedError as stopped:
        say(f"{PROGRAM}: {str(stopped).replace('resume=True', 'the same command with --resume')}")
        return 128 + stopped.signal_number
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001  # the last one that can report it
        if debug:
            traceback.print_exc()
            return _code(error)
        say(f"{PROGRAM}: {_message(error, names)}")
        return _code(error)


def _code(error: Exception) -> int:
    return ERROR if isinstance(error, (FinetuneError, OSError)) or _is_out_of_memory(error) else BUG


def _message(error: Exception, options: Sequence[str]) -> str:
    """One line; remedies in the words of the command line, which has these options."""
    text = " ".join(str(error).split())
    if isinstance(error, FinetuneError):
        return f"error: {for_command_line(error, options)}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"error: {where}{error.strerror or text}"
    if _is_out_of_memory(error):
        return "error: there is not enough memory; a smaller --max_edges needs less, where the verb has it"
    return f"bug: {type(error).__name__}: {text}; {_ISSUES}"


def _is_out_of_memory(error: Exception) -> bool:
    # That of torch by its name: torch may not be there yet.
    kind = type(error).__name__
    return isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in str(error)


def _show(text: str) -> NoReturn:
    sys.stdout.write(text)
    raise SystemExit(0)


def _close_quietly() -> None:
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # a stdout that is no file
        return
