"""The widgets of a panel. It places what pure functions made and passes on clicks; no other file knows ipywidgets.

ipywidgets is imported when the first panel is shown, so whoever drives a lab by code needs none. Nothing here needs an
event loop, `Output` or pyplot: the ticker's thread sets traits, and clicks come from whatever thread the kernel has.
"""

import html
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Self

from rqlab.errors import RQLabError
from rqlab.widgets import registry
from rqlab.widgets.ticker import TICKER, Ticker

INSTALL = "pip install 'rqlab[lab]'"
PROBLEM = "problem"  # the piece that says what went wrong
MARKER = "marker"  # the piece that is set last
#: Of buttons: as ipywidgets calls it, and the ink. White on JupyterLab's orange has a contrast of 2.7, people need 4.5.
COLOURS = {"danger": ("danger", None), "warning": ("warning", "#1a1a1a"), "plain": ("", None)}


def toolkit() -> Any:
    """ipywidgets; ImportError says how to get it."""
    try:
        return import_module("ipywidgets")
    except ImportError as error:
        raise ImportError(f"a panel needs ipywidgets, which cannot be imported ({error}). {INSTALL}") from error


class Shell:
    """The widgets of one panel: pieces of HTML by name, controls, and a marker that counts what was sent.

    Whatever has been made here is closed with it, ipywidgets' own layouts and styles too: it keeps all others for ever.
    """

    def __init__(self, act: Callable[[Callable[[], object]], None], name: str) -> None:
        self._act = act
        self._tools = toolkit()
        self._made: list[Any] = []
        self._pieces: dict[str, Any] = {}
        self._revision = 0
        self._has_changed = False
        self.box = self._keep(self._tools.VBox([]))
        self.box.add_class(f"rq-{name}")
        self.box._view_count = 0  # from now on ipywidgets counts who looks

    # Making widgets. `name` becomes a class on the widget itself, by which tests and style sheets find it.

    def html(self, name: str) -> Any:
        """A piece of HTML, empty until it is set."""
        piece = self._pieces[name] = self._named(self._tools.HTML(), name)
        return piece

    def button(
        self, words: str, action: Callable[[], object], *, name: str, tip: str = "", colour: str = "plain"
    ) -> Any:
        """A button whose words stand alone; `action` must return at once."""
        style, ink = COLOURS[colour]
        button = self._tools.Button(
            description=words,
            tooltip=tip or words,
            button_style=style,
            style={"text_color": ink},
            layout={"width": "auto"},
        )
        button.on_click(lambda _: self._act(action))
        return self._named(button, name)

    def control(self, kind: str, action: Callable[[Any], object], *, name: str, **traits: Any) -> Any:
        """A widget of ipywidgets with a value (`FloatSlider`, `Dropdown`, …); `action` is told each new one."""
        widget = getattr(self._tools, kind)(**traits)
        widget.observe(lambda change: self._act(lambda: action(change["new"])), names="value")
        return self._named(widget, name)

    def row(self, *children: Any) -> Any:
        """Side by side, in further lines where the page is narrow."""
        row = self._tools.HBox(list(children), layout={"flex_flow": "row wrap", "align_items": "center"})
        return self._keep(row)

    def column(self, *children: Any) -> Any:
        """One under another."""
        return self._keep(self._tools.VBox(list(children)))

    def tabs(self, **children: Any) -> Any:
        """One behind another; the names become titles."""
        tabs = self._tools.Tab(list(children.values()))
        tabs.titles = [name.replace("_", " ") for name in children]
        return self._keep(tabs)

    def place(self, *children: Any) -> None:
        """What the panel consists of, from the top; what went wrong stands above, the marker below."""
        self.box.children = (self.html(PROBLEM), *children, self.html(MARKER))

    # Changing them: from any thread, one at a time.

    def set(self, name: str, text: str) -> None:
        """Have a piece show this HTML; sent only if it is new."""
        self.change(self._pieces[name], value=text)

    def change(self, widget: Any, **traits: Any) -> None:
        """Set traits that differ."""
        for trait, value in traits.items():
            if getattr(widget, trait) != value:
                setattr(widget, trait, value)
                self._has_changed = True

    def mark(self) -> int:
        """The end of one drawing: if anything was sent, the marker counts on. Tests wait for it; the count."""
        if self._has_changed:
            self._has_changed = False
            self._revision += 1
            self._pieces[MARKER].value = f'<span data-rq-rev="{self._revision}"></span>'
        return self._revision

    @property
    def texts(self) -> Mapping[str, str]:
        """What the pieces show."""
        return {name: str(piece.value) for name, piece in self._pieces.items()}

    def close(self) -> None:
        """Close every widget that was made here."""
        for widget in reversed(self._made):
            for part in ("layout", "style"):
                inner = getattr(widget, part, None)
                if inner is not None:
                    inner.close()
            widget.close()

    def _named(self, widget: Any, name: str) -> Any:
        widget.add_class(f"rq-{name}")
        return self._keep(widget)

    def _keep(self, widget: Any) -> Any:
        self._made.append(widget)
        return widget


class Panel:
    """What the lab and the explorer have in common: shown at first use, drawn by the ticker, closed once.

    A subclass lays out its widgets, draws them, and ends what is its own. `ticker` is another for tests.
    """

    name = "panel"

    def __init__(self, ticker: Ticker = TICKER) -> None:
        self._ticker = ticker
        self._shell: Shell | None = None
        self._drawing = threading.RLock()  # one thread draws; it may find that the panel has to close
        self._is_closed = False
        self._refused = ""  #: why the last action could not be done, as HTML
        self._broken = ""  #: why the last drawing could not

    # What a subclass does.

    def _lay_out(self, shell: Shell) -> None:
        """Make the widgets and place them."""
        raise NotImplementedError

    def _draw(self, shell: Shell) -> None:
        """Set the pieces and controls to what is now."""
        raise NotImplementedError

    def _end(self) -> None:
        """End what is not a widget."""

    def _as_text(self) -> str:
        """What stands where widgets cannot be shown."""
        return repr(self)

    def _as_html(self) -> str:
        """The same with markup; nothing if there is no more to show."""
        return ""

    # What it then is.

    @property
    def widget(self) -> Any:
        """The ipywidgets box; made at first use. ImportError if ipywidgets is not installed."""
        return self._shown().box

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def draw(self) -> int:
        """Draw now, whoever looks; how often anything has been sent."""
        shell = self._shown()
        with self._drawing:
            if not self._is_closed:
                self._draw(shell)
                self._broken = ""
                shell.set(PROBLEM, self._refused)
            return shell.mark()

    def close(self) -> None:
        """End all that belongs to the panel, and close every widget. Called again, it does nothing."""
        with self._drawing:
            if self._is_closed:
                return
            self._is_closed = True
        self._ticker.remove(self)
        registry.forget(self)
        try:
            self._end()
        finally:
            with self._drawing:
                if self._shell is not None:
                    self._shell.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _repr_mimebundle_(self, include: Sequence[str] | None = None, exclude: Sequence[str] | None = None) -> Any:
        """The live panel, and what a page shows that has no kernel."""
        still = {"text/plain": self._as_text(), **({"text/html": said} if (said := self._as_html()) else {})}
        if self._is_closed:
            return still
        live = self.widget._repr_mimebundle_(include=include, exclude=exclude)
        data, *metadata = live if isinstance(live, tuple) else (live,)
        return ({**data, **still}, *metadata) if metadata else {**data, **still}

    # What the ticker calls.

    def is_watched(self) -> bool:
        """Whether a page shows it. A page that was closed without a word still counts."""
        return self._shell is not None and not self._is_closed and bool(self._shell.box._view_count)

    def tick(self) -> None:
        """Draw what has changed; if that cannot be done, say so until it can."""
        try:
            self.draw()
        except Exception as error:  # noqa: BLE001  # of whatever kind: whoever looks is told
            with self._drawing:
                self._broken = _alert(error)
                self._show_problem()

    def show_error(self, error: Exception) -> None:
        """Say in the panel what went wrong, until the next thing is done."""
        with self._drawing:
            self._refused = _alert(error)
            self._show_problem()

    # Below: what it does with them.

    def _shown(self) -> Shell:
        with self._drawing:
            if self._shell is None:
                if self._is_closed:
                    raise RQLabError(f"cannot show {self!r}: it is closed. Make another")
                shell = Shell(self._act, self.name)
                try:
                    self._lay_out(shell)
                    self._draw(shell)
                    shell.mark()
                except BaseException:
                    shell.close()
                    raise
                self._shell = shell
                shell.box.observe(lambda _: self._ticker.ring(), names="_view_count")
                self._ticker.add(self)
            return self._shell

    def _act(self, action: Callable[[], object]) -> None:
        """Do what a button or a slider asks for; what is wrong with it is shown, not raised into the kernel."""
        if self._is_closed:
            return
        try:
            action()
            refused = ""
        except Exception as error:  # noqa: BLE001  # of whatever kind: a click has nobody to raise it to
            refused = _alert(error)
        with self._drawing:
            self._refused = refused
            self._show_problem()
        self._ticker.ring()

    def _show_problem(self) -> None:
        if self._shell is not None and not self._is_closed:
            self._shell.set(PROBLEM, self._refused + self._broken)
            self._shell.mark()


def _alert(error: Exception) -> str:
    known = isinstance(error, RQLabError)
    words = html.escape((str(error) if known else f"{type(error).__name__}: {error}")[:400])
    return (
        '<div role="alert" style="border-left:4px solid #d55e00;padding:2px 8px;overflow-wrap:anywhere">'
        f"<b>✗</b> {words}</div>"
    )
