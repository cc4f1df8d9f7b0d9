"""Where a run computes, on the Train page: here, or on a machine of the Hub that its owner pays.

    place = PlaceStep(app, fields)
    place.form(values); place.job(values)     of an event with `[*form, *place.inputs]`

Machines and prices are the Hub's of now, each with what this very run would cost there. They follow
the form, and nothing is ordered before the launch.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from phi3lora import words
from phi3lora.app.application import Application
from phi3lora.app.machines import cheapest
from phi3lora.errors import ConfigError, Phi3LoraError
from phi3lora.hub.jobs import JobRequest
from phi3lora.training.offers import Offer
from phi3lora.ui import show
from phi3lora.ui.sessions import session_of
from phi3lora.ui.widgets import Fields

HERE, JOBS = "here", "jobs"
PLACES = [("Here", HERE), ("On a machine of the Hub, paid by you", JOBS)]
ABOUT = (
    "A Job in your own account, billed by the second. Costs are computed from data sheets until a "
    "run of yours was measured there."
)


class PlaceStep:
    """The choice, and what a choice of machines needs."""

    def __init__(self, app: Application, fields: Fields) -> None:
        self.app, self._fields = app, fields
        offered = app.settings.may_run_jobs
        self.where = gr.Radio(
            PLACES, value=HERE, label="Where it computes", visible=offered, elem_id="where"
        )
        with gr.Column(visible=False, elem_id="machines") as self.machines:
            self.note = gr.HTML(elem_id="machines-note", apply_default_css=False)
            self.flavor = gr.Radio([], label="Machine", elem_id="flavor", elem_classes="flavors")
            self.at_most = gr.Number(
                None,
                label="At most, in dollars",
                info="The Job is ended before it costs more; the run is saved first.",
                minimum=0.1,
                elem_id="at-most",
            )

    @property
    def inputs(self) -> list[Any]:
        """What an event that needs to know the place is given, behind the form."""
        return [self.where, self.flavor, self.at_most]

    @property
    def outputs(self) -> list[Any]:
        """What `on_offers` fills."""
        return [self.machines, self.note, self.flavor, self.at_most]

    def form(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The form's own of an event's values."""
        return values[: len(self._fields.by_name)]

    def job(self, values: tuple[Any, ...]) -> JobRequest | None:
        """The machine of the Hub that was chosen; None for here, and where no place was sent.

        Raises Phi3LoraError where no machine, or no cap, was chosen.
        """
        where, flavor, at_most = values[len(self._fields.by_name) :] or (HERE, None, None)
        if where != JOBS:
            return None
        if not flavor:
            raise Phi3LoraError("Choose the machine of the Hub first, or let it compute here.")
        if not at_most or at_most <= 0:
            raise Phi3LoraError("Say first how many dollars the machine of the Hub may cost.")
        return JobRequest(str(flavor), float(at_most))

    def on_offers(self, request: gr.Request, *values: Any) -> list[Any]:
        """Machines with the cost of this run on each; the cheapest, unless one was chosen."""
        where, chosen, at_most = values[len(self._fields.by_name) :]
        if where != JOBS:
            return [gr.update(visible=False), gr.skip(), gr.skip(), gr.skip()]
        try:
            config, _ = self._fields.config(self.form(values))
            caller = self.app.callers.caller(session_of(request))
            found = self.app.launching.offers(config, caller)
        except ConfigError:  # the form says what is wrong with it
            return [gr.update(visible=True), gr.skip(), gr.skip(), gr.skip()]
        except Phi3LoraError as error:
            return [gr.update(visible=True), show.notice(str(error), "red"), gr.skip(), gr.skip()]
        picked = next((one for one in found if one.flavor.name == chosen), cheapest(found))
        choices = [(offer_line(one), one.flavor.name) for one in found]
        name, cap = (picked.flavor.name, picked.cap) if picked else (None, None)
        return [
            gr.update(visible=True),
            show.notice(ABOUT, "grey"),
            gr.update(choices=choices, value=name),
            gr.skip() if at_most and chosen == name else cap,
        ]

    def wire(self, form: list[Any], settled: list[Any], checked: dict[str, Any]) -> None:
        """Offers follow the form; another place, machine or cap is checked anew."""
        offers: dict[str, Any] = {
            "fn": self.on_offers,
            "inputs": [*form, *self.inputs],
            "outputs": self.outputs,
            "show_progress": "hidden",
            "api_visibility": "private",
            "trigger_mode": "always_last",
        }
        self.where.input(**offers).then(**checked)
        gr.on(settled, **offers)
        gr.on([self.flavor.input, self.at_most.blur], **checked)


def offer_line(offer: Offer) -> str:
    """A machine in a line: its card, its price, and what this run would cost on it."""
    flavor = offer.flavor
    several = f"{flavor.cards} × " if flavor.cards > 1 else ""
    card = f"{several}{flavor.card} {words.size(flavor.memory)}" if flavor.card else "no GPU"
    parts = [flavor.name, card, f"${flavor.dollars(3600):.2f} an hour"]
    if offer.dollars is not None and offer.seconds is not None:
        took = words.duration(offer.seconds)
        parts.append(f"this run about ${offer.dollars:.2f} in {took}")
    if not offer.fits:
        parts.append("does not fit")
    return " · ".join(parts)
