"""The package's own instruments, taken out of the running code and put back.

What they cost is too little to see between two processes, which differ by more than that in how their memory happens to
lie. So one process has both: the functions that count are compiled a second time without the statements that only
count, and the two codes are exchanged while requests go on. What is left out is found by its form, in whichever
function it stands; `stripped` says what that is.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Final

MODULES: Final = (
    "wings_proxy.proxy.relay",
    "wings_proxy.proxy.forward",
    "wings_proxy.telemetry.loop_lag",
)
"""Where something is counted while requests go on."""


class Instrument(enum.StrEnum):
    """What can be left out."""

    NOTHING = "nothing"
    """The control: the codes are exchanged for codes that do the same."""
    METRICS = "metrics"
    """Request counters, histograms, the count of events and the event loop's lag."""
    ACCESS_LOG = "access log"


# What a body's bytes tell the metrics, and what the byte path itself has to remember of them.
_ARRIVED: Final = "arrived"
_REMEMBERED: Final = "exchange.sent_bytes += size\nexchange.newest_byte = now"
_ARGUMENTS: Final = ("exchange", "now", "size", "events")
_EVENTS_COUNTED: Final = "count_chunks"


class UnknownCodeError(Exception):
    """The package no longer counts in the form that is looked for here."""


def stripped(source: str, without: Sequence[Instrument]) -> tuple[ast.Module, int]:
    """Return the program without these instruments, and how many pieces were left out.

    Metrics: calls of `observe` and of `metrics.count`, the search for events' ends in whole chunks, and of what is done
    when bytes have arrived all but what the byte path itself needs. Access log: what is done if there is one.
    """
    remover = _Remover(frozenset(without))
    tree = remover.visit(ast.parse(source))
    return ast.fix_missing_locations(tree), remover.removed


class _Remover(ast.NodeTransformer):
    def __init__(self, without: frozenset[Instrument]) -> None:
        self._metrics = Instrument.METRICS in without
        self._access_log = Instrument.ACCESS_LOG in without
        self.removed = 0

    def visit_Expr(self, node: ast.Expr) -> ast.stmt | list[ast.stmt]:
        match node.value:
            case ast.Call(func=ast.Attribute(attr="observe")) if self._metrics:
                self.removed += 1
                return ast.Pass()
            case ast.Call(func=ast.Attribute(attr="count", value=ast.Attribute(attr="metrics"))) if self._metrics:
                self.removed += 1
                return ast.Pass()
            case ast.Call(func=ast.Attribute(attr=name), args=arguments) if self._metrics and name == _ARRIVED:
                self.removed += 1
                given = dict(zip(_ARGUMENTS, arguments, strict=True))
                return [_Filled(given).visit(statement) for statement in ast.parse(_REMEMBERED).body]
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        match node.func:
            case ast.Attribute(attr=name) if self._metrics and name == _EVENTS_COUNTED:
                self.removed += 1
                return ast.Constant(0)
        self.generic_visit(node)
        return node

    def visit_If(self, node: ast.If) -> ast.stmt:
        match node.test:
            case ast.Compare(left=ast.Attribute(attr="access_log"), ops=[ast.IsNot()]) if self._access_log:
                self.removed += 1
                return ast.Pass()
        self.generic_visit(node)
        return node


class _Filled(ast.NodeTransformer):
    """Puts expressions in place of names."""

    def __init__(self, given: Mapping[str, ast.expr]) -> None:
        self._given = given

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._given.get(node.id, node)


@dataclass(frozen=True, slots=True)
class Exchanged:
    """A function that counts, and its two codes."""

    function: FunctionType
    counting: CodeType
    bare: CodeType


class Switch:
    """Takes instruments out of the modules of this process, and puts them back."""

    def __init__(self, without: Sequence[Instrument]) -> None:
        """Compile what counts a second time; raises `UnknownCodeError` if an instrument is nowhere found."""
        for instrument in without:
            looked_for = instrument is not Instrument.NOTHING
            if looked_for and not any(stripped(_source(module), [instrument])[1] for module in _modules()):
                raise UnknownCodeError(f"nothing in {', '.join(MODULES)} looks like a part of: {instrument}")
        self.functions = tuple(_exchanged(without))

    def on(self) -> None:
        """Count, as the package does."""
        for each in self.functions:
            each.function.__code__ = each.counting

    def off(self) -> None:
        """Count nothing; a call under way ends as it began."""
        for each in self.functions:
            each.function.__code__ = each.bare


def _modules() -> Iterator[ModuleType]:
    return map(importlib.import_module, MODULES)


def _source(module: ModuleType) -> str:
    return inspect.getsource(module)


def _exchanged(without: Sequence[Instrument]) -> Iterator[Exchanged]:
    for module in _modules():
        source = _source(module)
        # Compiled from one source in the same way: what differs is what was left out. What may be left out is always
        # exchanged, left out or not: to be exchanged has a price of its own.
        whole, none = _codes(ast.parse(source), module), _codes(stripped(source, tuple(Instrument))[0], module)
        bare = _codes(stripped(source, without)[0], module)
        for function in _functions(module):
            name = function.__code__.co_qualname
            if not _same(whole[name], none[name]):
                yield Exchanged(function, function.__code__, bare[name])


def _codes(tree: ast.Module, module: ModuleType) -> dict[str, CodeType]:
    """Return the code of every function by its qualified name."""
    found: dict[str, CodeType] = {}

    def look(code: CodeType) -> None:
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                found[constant.co_qualname] = constant
                look(constant)

    look(compile(tree, module.__file__ or module.__name__, "exec", dont_inherit=True))
    return found


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Return the functions of a module and the methods of its classes."""
    for owner in (module, *(value for value in vars(module).values() if isinstance(value, type))):
        for value in vars(owner).values():
            function = value.fget if isinstance(value, property) else value
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                yield function


def _same(one: CodeType, other: CodeType) -> bool:
    return (
        one.co_code == other.co_code and one.co_names == other.co_names and len(one.co_consts) == len(other.co_consts)
    )
