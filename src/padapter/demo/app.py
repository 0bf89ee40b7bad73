"""The page of ``padapter demo``: Gradio components around a session."""

from __future__ import annotations

import html
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from padapter.demo.examples import write_examples
from padapter.demo.options import DemoOptions
from padapter.demo.overlay import overlay
from padapter.demo.session import Answer, Choice, Session
from padapter.errors import UserError

Example = tuple[str, str, str]  # task, picture, text
WHOLE = "the whole answer"
STRENGTH = 0.6
_HINTS = {"question": "What is the question?", "hypothesis": "A statement about the picture: is it right?"}
# Nothing is loaded from, or sent to, anywhere but this server; the fonts are those of the machine.
_POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; connect-src 'self' data: blob: ws: wss:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
_TO_RESULT = "() => { document.getElementById('result').scrollIntoView({ block: 'center' }); }"
_QUIET = {"api_visibility": "private"}
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def build(session: Session, examples: Sequence[Example] = ()) -> gr.Blocks:
    """The page.

    Args:
        session: answers.
        examples: (task, picture, text).

    Returns:
        Blocks to launch with `settings`.
    """
    asked = _Asked(session)
    with gr.Blocks(title="padapter demo", analytics_enabled=False) as page:
        gr.HTML(
            f"<h1>Ask {html.escape(Path(session.model).name)}, with and without its adapters</h1>"
            "<p>The answer rests on the bright parts of the map, not on the dark ones.</p>",
            elem_id="head",
            padding=False,
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                question = _question(session)
            with gr.Column(scale=5, min_width=300):
                shown = _result()
        _connect(asked, question, shown)
        for task in dict.fromkeys(example[0] for example in examples):
            rows, mine = _example_rows(session, examples, task)
            rows.click(None, js=_TO_RESULT, show_progress="hidden", **_QUIET)
            rows.click(
                asked.example(task, mine),
                [rows, question.model, shown.strength],
                [question.picture, question.text, question.model, *shown.outputs],
                show_progress_on=[shown.result],
                **_QUIET,
            )
    return page


class _Asked:
    """What happens on the page; each returns what the outputs of `_Shown` become, and more where it says so."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def ask(self, picture: str | None, text: str | None, title: str, strength: float) -> tuple[Any, ...]:
        if picture is None:
            return _shown(_problem("Choose a picture first."), None, strength)
        try:
            answer = self.session.answer(picture, text, title)
        except UserError as problem:
            return _shown(_problem(str(problem).replace(picture, Path(picture).name)), None, strength)
        return _shown(_answered(answer), answer, strength)

    def switch(self, picture: str | None, text: str | None, title: str, strength: float) -> tuple[Any, ...]:
        """Another model was chosen: it is asked the same. Comes with the field for the text."""
        choice = self.session.choice(title)
        unready = picture is None or (choice.asks_for is not None and not (text or "").strip())
        found = _shown(_empty(), None, strength) if unready else self.ask(picture, text, title, strength)
        return gr.update(**_text_settings(choice)), *found

    def example(self, task: str, mine: Sequence[Example]) -> Callable[[int, str, float], tuple[Any, ...]]:
        """Makes what happens to a click on one of these. Comes with picture, text and model."""

        def show(number: int, title: str, strength: float) -> tuple[Any, ...]:
            """An example is asked at once: of the chosen model, or of the first one for its task."""
            choice = self.session.choice(title)
            if choice.source.task.name != task:
                choice = next(one for one in self.session.choices if one.adapter and one.source.task.name == task)
            _, picture, text = mine[number]
            box = gr.update(value=text, **_text_settings(choice))
            return picture, box, choice.title, *self.ask(picture, text, choice.title, strength)

        return show


@dataclass(frozen=True)
class _Question:
    """Components that say what is asked of whom."""

    picture: Any
    text: Any
    model: Any
    button: Any


@dataclass(frozen=True)
class _Shown:
    """Components that show an answer; ``state`` holds it."""

    result: Any
    drawn: Any
    controls: Any
    token: Any
    strength: Any
    state: Any

    @property
    def outputs(self) -> list[Any]:
        """In the order of `_shown`."""
        return [self.result, self.drawn, self.controls, self.token, self.state]


def _question(session: Session) -> _Question:
    start = next(choice for choice in session.choices if choice.adapter is not None)
    picture = gr.Image(label="Picture", sources=["upload", "clipboard"], height=300, elem_id="picture")
    picture.preprocess = _path_of  # a subclass would make Gradio write a file beside this one
    text = gr.Textbox(elem_id="text", lines=1, max_lines=3, **_text_settings(start))
    model = gr.Radio([choice.title for choice in session.choices], value=start.title, label="Model", elem_id="model")
    return _Question(picture, text, model, gr.Button("Ask", variant="primary", elem_id="ask"))


def _result() -> _Shown:
    result = gr.HTML(_empty(), elem_id="result", padding=False)
    drawn = gr.Image(
        label="What the answer rests on",
        interactive=False,
        visible=False,
        format="png",
        elem_id="map",
        buttons=["download", "fullscreen"],
    )
    with gr.Row(visible=False, elem_id="controls") as controls:
        token = gr.Dropdown([(WHOLE, -1)], value=-1, label="Map of", elem_id="token", min_width=220)
        strength = gr.Slider(
            0.0, 1.0, STRENGTH, step=0.05, label="Strength of the map", elem_id="strength", min_width=220, buttons=[]
        )
    return _Shown(result, drawn, controls, token, strength, gr.State(None))


def _connect(asked: _Asked, question: _Question, shown: _Shown) -> None:
    inputs = [question.picture, question.text, question.model, shown.strength]
    ways = [question.button.click, question.text.submit]
    gr.on(ways, asked.ask, inputs, shown.outputs, show_progress_on=[shown.result], **_QUIET)
    question.model.input(
        asked.switch, inputs, [question.text, *shown.outputs], show_progress_on=[shown.result], **_QUIET
    )
    changes = [shown.token.input, shown.strength.release]
    redrawn = [shown.state, shown.token, shown.strength]
    gr.on(changes, _redraw, redrawn, shown.drawn, show_progress="hidden", **_QUIET)


def _redraw(answer: Answer | None, token: int, strength: float) -> Any:
    if answer is None or answer.explanation is None:
        return None
    return overlay(answer.explanation, token=None if token < 0 else token, strength=strength)


def settings() -> dict[str, Any]:
    """How the page looks and what it may do: keywords for ``launch``."""
    from starlette.middleware import Middleware

    style = resources.files(__package__).joinpath("assets").joinpath("page.css").read_text(encoding="utf-8")
    return {
        "theme": gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=_FONTS, font_mono=_MONO).set(
            body_text_color_subdued="*neutral_600"  # Gradio's own is too pale to read on white
        ),
        "css": style,
        "share": False,
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "enable_monitoring": False,
        "app_kwargs": {"middleware": [Middleware(_OwnOnly)]},
    }


def serve(options: DemoOptions) -> None:
    """Load the runs and serve the page until Ctrl-C.

    Raises:
        UserError: as `Session`, and for a port that is taken.
    """
    session = Session(options.runs, options.device)
    with tempfile.TemporaryDirectory(prefix="padapter-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # what is uploaded is gone with the page
        page = build(session, write_examples(options.runs, list(session.sources.values()), Path(folder)))
        try:
            _, url, _ = page.launch(
                server_name=options.host,
                server_port=options.port,
                inbrowser=options.browser,
                allowed_paths=[folder],
                prevent_thread_lock=True,
                quiet=True,
                **settings(),
            )
        except OSError as problem:
            place = f"{options.host}:{options.port or 'any port from 7860'}"
            raise UserError(f"--port: cannot serve at {place} ({problem}); give another --port or --host") from problem
        print(f"{len(session.sources)} runs over {session.model} at {url} ; Ctrl-C stops")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")
        finally:
            page.close(verbose=False)


class _OwnOnly:
    """Tells browsers to load nothing from other places."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, sending)


def _example_rows(session: Session, examples: Sequence[Example], task: str) -> tuple[Any, list[Example]]:
    """Rows of one task to click on."""
    mine = [example for example in examples if example[0] == task]
    asks = next(choice.asks_for for choice in session.choices if choice.source.task.name == task)
    rows = gr.Dataset(
        components=["image", *(["textbox"] if asks else [])],
        headers=["Picture", *([asks.capitalize()] if asks else [])],
        samples=[[picture, text] if asks else [picture] for _, picture, text in mine],
        label=f"Examples ({task})",
        type="index",
        elem_id=f"examples-{task}",
    )
    return rows, mine


def _path_of(payload: Any) -> str | None:
    """The file that was uploaded as it is: `padapter.data.open_image` says what is wrong with it, if anything is."""
    return None if payload is None else str(payload.path)


def _text_settings(choice: Choice) -> dict[str, Any]:
    asks = choice.asks_for
    return {
        "label": (asks or "text").capitalize(),
        "placeholder": _HINTS.get(asks or "", ""),
        "visible": asks is not None,
    }


def _shown(message: str, answer: Answer | None, strength: float) -> tuple[Any, ...]:
    """What the outputs of a question become."""
    explanation = answer.explanation if answer is not None else None
    tokens = [(WHOLE, -1)]
    if explanation is not None and len(explanation.sides[-1].tokens) > 1:
        tokens += [(token, number) for number, token in enumerate(explanation.sides[-1].tokens)]
    drawn = None if explanation is None else overlay(explanation, strength=strength)
    return (
        message,
        gr.update(value=drawn, visible=drawn is not None),
        gr.update(visible=drawn is not None),
        gr.update(choices=tokens, value=-1, visible=len(tokens) > 1),
        answer,
    )


def _empty() -> str:
    return '<div class="card quiet">The answer will stand here.</div>'


def _problem(message: str) -> str:
    return f'<div class="card problem" role="alert">{html.escape(message)}</div>'


def _answered(answer: Answer) -> str:
    said = html.escape(answer.text) or "<em>nothing</em>"
    parts = [f'<div class="who">{html.escape(answer.title)}</div><div class="said">{said}</div>']
    if answer.probabilities:
        rows = "".join(
            f'<div class="row"><span class="word">{html.escape(word)}</span>'
            f'<span class="bar"><span style="width:{100 * share:.1f}%"></span></span>'
            f'<span class="share">{100 * share:.1f} %</span></div>'
            for word, share in answer.probabilities.items()
        )
        parts.append(f'<div class="odds">{rows}</div>')
    if answer.note:
        parts.append(f'<div class="note">{html.escape(answer.note)}</div>')
    return f'<div class="card" aria-live="polite">{"".join(parts)}</div>'
