"""What a callable says about itself: whether it takes a context, is async, what it returns, and its lasting name.

Looked at once for each function and remembered for as long as the function lives.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import typing
from asyncio import Future, Task
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, NoneType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

import msgspec

from event_workflow_engine.context import CompensationContext, StepContext
from event_workflow_engine.errors import DefinitionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CallInfo", "call_info", "called", "check_readable", "find_named", "lasting_name", "readable"]

_AWAITABLES: Final = (collections.abc.Awaitable, collections.abc.Coroutine, Future, Task)
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_SAYS_NOTHING: Final = frozenset({object, typing.NoReturn, typing.Never, typing.Self})
_MANY: Final = 3
"""Enough placeholders of a kind: beyond them a `partial` is looked at anew each time."""


class CallInfo(msgspec.Struct, frozen=True):
    """What is known about a callable.

    Attributes:
        takes_context: It has a required positional parameter. By arity, never by the parameter's name.
        is_async: A coroutine function, a partial of one, an object with an async ``__call__``, or a function that is
            annotated to return an awaitable: calling it on the loop gives something to await. A function without either
            sign may still return an awaitable.
        result_type: What it returns, awaited; ``Any`` where that is not annotated or cannot be resolved.
        context_input: ``X`` of a first parameter ``StepContext[X]`` or ``CompensationContext[X, R]``, else ``Any``.
        context_result: ``R`` of a first parameter ``CompensationContext[X, R]``, else ``Any``.
        required: How many positional parameters have no default.
        positional: How many positional parameters there are in all, ``*args`` aside.
        keyword_only: Required parameters that can only be given by keyword.
        first_type: The annotation of the first positional parameter; ``Any`` where there is none.
        yields: A generator function, sync or async.
        unresolved_result: Why the result's annotation cannot be resolved; empty where it can, or where there is none.
        unresolved_first: The same of the first positional parameter.
    """

    takes_context: bool = False
    is_async: bool = False
    result_type: Any = Any
    context_input: Any = Any
    context_result: Any = Any
    required: int = 0
    positional: int = 0
    keyword_only: tuple[str, ...] = ()
    first_type: Any = Any
    yields: bool = False
    unresolved_result: str = ""
    unresolved_first: str = ""


# Weak, so that closures made anew in each run of a saga function's body are not kept; a `CallInfo` holds no function.
_plain: Final[WeakKeyDictionary[Any, CallInfo]] = WeakKeyDictionary()
_bound: Final[WeakKeyDictionary[Any, dict[tuple[int, tuple[str, ...]], CallInfo]]] = WeakKeyDictionary()


def call_info(fn: Callable[..., Any]) -> CallInfo:
    """What is known about `fn`; cheap when asked again.

    Partials, bound methods and callable objects are known by the function behind them, so that making them anew for
    each call costs no new look.
    """
    if type(fn) is FunctionType:
        known = _plain.get(fn)
        if known is None:
            known = _plain[fn] = _look(fn, 0, ())
        return known
    target, bound, keywords = _behind(fn)
    try:
        looks = _bound.setdefault(target, {})
    except TypeError:  # neither weakly referable nor hashable, which some C callables are
        return _look(target, bound, keywords)
    known = looks.get((bound, keywords))
    if known is None:
        known = _look(target, bound, keywords)
        if len(keywords) <= _MANY:
            looks[bound, keywords] = known
    return known


def _behind(fn: Any) -> tuple[Any, int, tuple[str, ...]]:
    """The function behind `fn`, how many of its positional arguments are bound, and which by keyword."""
    if isinstance(fn, functools.partial):
        target, bound, keywords = _behind(fn.func)
        return target, bound + len(fn.args), (*keywords, *fn.keywords)
    if isinstance(fn, MethodType):
        target, bound, keywords = _behind(fn.__func__)
        return target, bound + 1, keywords
    if isinstance(fn, (FunctionType, BuiltinFunctionType, type)) or not callable(fn):
        return fn, 0, ()
    call = type(fn).__call__
    return (call, 1, ()) if isinstance(call, FunctionType) else (fn, 0, ())


def _look(fn: Any, bound: int, keywords: tuple[str, ...]) -> CallInfo:
    hints, failures = _resolve(fn)
    is_async = inspect.iscoroutinefunction(fn)
    result = fn if isinstance(fn, type) else hints.get("return", Any)
    if not is_async and typing.get_origin(result) in _AWAITABLES:
        is_async, result = True, typing.get_args(result)[-1]
    elif not is_async and result in _AWAITABLES:
        is_async, result = True, Any
    positional, keyword_only = _parameters(fn, bound, keywords)
    required = [each for each in positional if each.default is inspect.Parameter.empty]
    first_name = positional[0].name if positional else ""
    first = hints.get(first_name, Any)
    context_input, context_result = _context_arguments(first)
    return CallInfo(
        takes_context=bool(required),
        is_async=is_async,
        result_type=readable(result),
        context_input=readable(context_input),
        context_result=readable(context_result),
        required=len(required),
        positional=len(positional),
        keyword_only=keyword_only,
        first_type=first,
        yields=inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn),
        unresolved_result=failures.get("return", ""),
        unresolved_first=failures.get(first_name, ""),
    )


def _parameters(fn: Any, bound: int, keywords: tuple[str, ...]) -> tuple[list[inspect.Parameter], tuple[str, ...]]:
    """The positional parameters that are left, and those required by keyword only."""
    if bound or keywords:
        # The partial is never called: `signature` knows which parameters it leaves over.
        fn = functools.partial(fn, *(None,) * bound, **dict.fromkeys(keywords))
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (ValueError, TypeError):  # a C function that has no signature
        return [], ()
    positional = [each for each in parameters if each.kind in _POSITIONAL]
    needed = [
        each.name
        for each in parameters
        if each.kind is inspect.Parameter.KEYWORD_ONLY and each.default is inspect.Parameter.empty
    ]
    return positional, tuple(needed)


def _closed_over(fn: FunctionType) -> dict[str, Any]:
    """What a closure sees by name; names that are bound only later are not there yet."""
    found = {}
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        with suppress(ValueError):
            found[name] = cell.cell_contents
    return found


def _resolve(fn: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """`fn`'s annotations by parameter, and why others cannot be resolved."""
    if isinstance(fn, type):
        return {}, {}
    # A class that is local to a function is found where the function's own code mentions it.
    local = _closed_over(fn) if isinstance(fn, FunctionType) and fn.__closure__ else None
    try:
        return typing.get_type_hints(fn, localns=local, include_extras=True), {}
    except Exception:  # noqa: BLE001 - an annotation may be any expression, and raise anything
        return _resolve_each(fn, local)


def _resolve_each(fn: Any, local: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        annotations: Mapping[str, Any] = fn.__annotations__
    except Exception:  # noqa: BLE001 - evaluated only now, from Python 3.14 on
        annotations = {}
    hints: dict[str, Any] = {}
    failures: dict[str, str] = {}
    scope = getattr(inspect.unwrap(fn), "__globals__", {})
    for name, annotation in annotations.items():

        def carrier() -> None: ...

        carrier.__annotations__ = {name: annotation}
        try:
            hints.update(typing.get_type_hints(carrier, scope, local, include_extras=True))
        except Exception as error:  # noqa: BLE001 - as above
            failures[name] = (
                f"the annotation {annotation!r} in {called(fn)} cannot be resolved ({error}): import the type at run "
                "time, not under TYPE_CHECKING, and define it at the top of a module"
            )
    return hints, failures


def _context_arguments(annotation: Any) -> tuple[Any, Any]:
    """``X`` and ``R`` of ``StepContext[X]`` and ``CompensationContext[X, R]``."""
    annotation = _bare(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is CompensationContext:
        return arguments[0], arguments[1]
    return (arguments[0], Any) if origin is StepContext else (Any, Any)


def _bare(annotation: Any) -> Any:
    return annotation.__origin__ if typing.get_origin(annotation) is typing.Annotated else annotation


def readable(annotation: Any) -> Any:
    """`annotation`; ``Any`` where it says nothing that a decoder could use: ``object``, ``Never``, a type variable."""
    if annotation is typing.LiteralString:
        return str
    silent = isinstance(annotation, typing.TypeVar) or (
        isinstance(annotation, collections.abc.Hashable) and annotation in _SAYS_NOTHING
    )
    return Any if silent else annotation


def called(fn: Any) -> str:
    """What to call `fn` by: its ``__name__``, that of the function behind a partial, or its class's.

    Example:
        >>> from functools import partial
        >>> called(print), called(partial(print, "x"))
        ('print', 'print')
    """
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__name__", None)
    return name if isinstance(name, str) else type(fn).__name__


@functools.lru_cache(maxsize=1024)
def _unreadable(kind: Any) -> str | None:
    try:
        info = msgspec.inspect.type_info(kind)
    except Exception as error:  # noqa: BLE001 - whatever msgspec or a class's own annotations raise, it says why
        return str(error)
    foreign = _foreign_parts(info)
    return f"{', '.join(sorted(foreign))} cannot be read back from JSON" if foreign else None


def _foreign_parts(info: Any) -> set[str]:
    """The types within a type that nothing can decode. Fields of classes are left to the class."""
    if isinstance(info, msgspec.inspect.CustomType):
        # As the codec does, Pydantic models are known by what they can do, without importing Pydantic.
        known = hasattr(info.cls, "model_validate") and hasattr(info.cls, "model_fields")
        return set() if known else {getattr(info.cls, "__qualname__", str(info.cls))}
    if not isinstance(info, msgspec.inspect.Type):
        return set()
    parts: list[Any] = [getattr(info, name, None) for name in ("item_type", "key_type", "value_type", "type")]
    for name in ("item_types", "types"):
        parts.extend(getattr(info, name, ()))
    return set().union(*(_foreign_parts(part) for part in parts))


def check_readable(kind: Any, what: str) -> None:
    """Check that values of a type can be read back from JSON.

    Asked when something is defined, since it would otherwise come up only after a crash, when a stored value is read.

    Args:
        kind: An annotation.
        what: Whose value it is, for the error's text.

    Raises:
        DefinitionError: They cannot; names the type and the remedy.
    """
    if kind is Any:
        return
    try:
        problem = _unreadable(kind)
    except TypeError:  # an unhashable annotation, e.g. Annotated with a dict
        problem = _unreadable.__wrapped__(kind)
    if problem is not None:
        raise DefinitionError(
            f"{what}: {problem}; use a dataclass, Struct, TypedDict or Pydantic model, tagged Structs for a choice of "
            "several, or annotate it as Any to get plain dicts and lists"
        )


def lasting_name(fn: Any) -> str:
    """``module:qualname`` of a function, by which it can be found again in another process.

    Raises:
        DefinitionError: It has none that lasts: a lambda, a closure, a partial, a bound method, an object.

    Example:
        >>> lasting_name(called)
        'event_workflow_engine.callables:called'
    """
    # The functions of C modules are bound to their module, C methods to an object.
    bound = isinstance(fn, MethodType) or not isinstance(getattr(fn, "__self__", None), (ModuleType, NoneType))
    if isinstance(fn, (FunctionType, BuiltinFunctionType)) and not bound:
        if "<" not in fn.__qualname__ and fn.__module__:
            return f"{fn.__module__}:{fn.__qualname__}"
        kind = "a lambda" if fn.__name__ == "<lambda>" else "a function within a function"
    elif isinstance(fn, functools.partial):
        kind = "a partial"
    elif bound:
        kind = "a bound method"
    else:
        kind = "an object"
    raise DefinitionError(
        f"{called(fn)} is {kind}: after a restart nothing could find it again; write a function at the top of a module"
    )


def find_named(name: str, scope: Mapping[str, Any]) -> Callable[..., Any] | None:
    """The function of a lasting name in a module's globals, or one level down in modules that are in these globals.

    Nothing is imported. A function that was moved to another module but still goes by its own name in `scope` is found
    too, as is one whose module was ``__main__`` when the name was stored.

    Args:
        name: As `lasting_name` made it.
        scope: A module's globals.
    """
    module, _, path = name.partition(":")
    values = list(scope.values())
    for value in values:
        if _is_named(value, module, path):
            return value  # type: ignore[no-any-return]
    for place in (scope, *(vars(each) for each in values if isinstance(each, ModuleType))):
        found = _walk(place, path)
        if _is_named(found, module, path):
            return found  # type: ignore[no-any-return]
    moved = _walk(scope, path)
    return moved if _is_named(moved, None, path) else None


def _is_named(value: Any, module: str | None, path: str) -> bool:
    # Only functions are asked for their names: proxies and lazy objects among the globals may raise or import.
    return (
        isinstance(value, (FunctionType, BuiltinFunctionType))
        and value.__qualname__ == path
        and (module is None or value.__module__ == module)
    )


def _walk(scope: Mapping[str, Any], path: str) -> Any:
    """``Class.function`` and the like, through classes only."""
    first, *rest = path.split(".")
    value = scope.get(first)
    for name in rest:
        if not isinstance(value, type):
            return None
        value = getattr(value, name, None)
    return value
