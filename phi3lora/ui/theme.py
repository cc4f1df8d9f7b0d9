"""How the pages look: one accent, two schemes, fonts that are served with the page.

    launch(theme=theme(), css_paths=STYLES, head=head())

Colours live here as Gradio's variables; shapes and spacing live in
style.css (what all pages have), train.css, runs.css and compare.css, which use them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes.utils import colors, fonts, sizes

_HERE = Path(__file__).parent
STYLES = [_HERE / name for name in ("style.css", "train.css", "runs.css", "compare.css")]
_NAMES = ("pages.js", "languages.js", "train.js", "files.js", "chart.js", "runs.js", "compare.js")
SCRIPTS = [_HERE / name for name in _NAMES]

ACCENT = colors.Color(
    name="tide",
    c50="#eefaf8",
    c100="#d3f1ec",
    c200="#a8e2da",
    c300="#73ccc2",
    c400="#43afa5",
    c500="#23938b",
    c600="#157770",
    c700="#125f5b",
    c800="#134c49",
    c900="#133f3d",
    c950="#042524",
)
NEUTRAL = colors.Color(
    name="slatestone",
    c50="#f7f8f8",
    c100="#eef0f0",
    c200="#e0e4e4",
    c300="#c8cecf",
    c400="#98a2a4",
    c500="#6c777a",
    c600="#525c5f",
    c700="#3a4346",
    c800="#232a2c",
    c900="#171c1e",
    c950="#0f1314",
)
TRAIN, HELD_OUT = "#1f9d92", "#d98a29"  # legible on white and on near-black


def head() -> str:
    """The scripts of the pages, for the head of each."""
    return "".join(f"<script>{file.read_text(encoding='utf-8')}</script>" for file in SCRIPTS)


def theme() -> gr.Theme:
    """The theme of every page."""
    base = gr.themes.Base(
        primary_hue=ACCENT,
        secondary_hue=ACCENT,
        neutral_hue=NEUTRAL,
        radius_size=sizes.radius_md,
        spacing_size=sizes.spacing_md,
        text_size=sizes.text_md,
        font=[fonts.LocalFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"],
        font_mono=[fonts.LocalFont("IBM Plex Mono", weights=(400,)), "monospace"],
    )
    return base.set(**_surfaces(), **_texts(), **_controls())


def _surfaces() -> dict[str, Any]:
    return {
        "body_background_fill": "*neutral_50",
        "body_background_fill_dark": "*neutral_950",
        "background_fill_primary": "white",
        "background_fill_primary_dark": "*neutral_900",
        "background_fill_secondary": "*neutral_50",
        "background_fill_secondary_dark": "*neutral_950",
        "block_background_fill": "transparent",
        "block_background_fill_dark": "transparent",
        "block_border_width": "0px",
        "block_border_width_dark": "0px",
        "block_shadow": "none",
        "block_padding": "0px",
        "block_label_background_fill": "transparent",
        "block_label_background_fill_dark": "transparent",
        "block_label_border_width": "0px",
        "block_label_border_width_dark": "0px",
        "block_label_padding": "0px",
        "block_label_margin": "0 0 6px 0",
        "panel_background_fill": "transparent",
        "panel_background_fill_dark": "transparent",
        "panel_border_width": "0px",
        "border_color_primary": "*neutral_200",
        "border_color_primary_dark": "#2a3235",
        "form_gap_width": "0px",
        "layout_gap": "16px",
    }


def _texts() -> dict[str, Any]:
    return {
        "body_text_color": "*neutral_900",
        "body_text_color_dark": "#e6eaea",
        "body_text_color_subdued": "*neutral_600",
        "body_text_color_subdued_dark": "#9aa5a7",
        "block_title_text_weight": "600",
        "block_title_text_size": "13px",
        "block_title_text_color": "*neutral_800",
        "block_title_text_color_dark": "#d5dadb",
        "block_label_text_color": "*neutral_800",
        "block_label_text_color_dark": "#d5dadb",
        "block_label_text_size": "13px",
        "block_label_text_weight": "600",
        "block_info_text_size": "12.5px",
        "block_info_text_color": "*neutral_600",
        "block_info_text_color_dark": "#9aa5a7",
        "link_text_color": "*primary_600",
        "link_text_color_dark": "*primary_300",
        "link_text_color_hover": "*primary_700",
        "link_text_color_hover_dark": "*primary_200",
        "link_text_color_visited": "*primary_600",
        "link_text_color_visited_dark": "*primary_300",
    }


def _controls() -> dict[str, Any]:
    return {
        "input_background_fill": "white",
        "input_background_fill_dark": "#1b2123",
        "input_border_width": "1px",
        "input_border_color": "*neutral_300",
        "input_border_color_dark": "#343d40",
        "input_border_color_focus": "*primary_500",
        "input_border_color_focus_dark": "*primary_400",
        "input_shadow": "none",
        "input_shadow_focus": "0 0 0 3px color-mix(in srgb, var(--primary-500) 22%, transparent)",
        "input_radius": "8px",
        "input_padding": "8px 12px",
        "input_text_size": "14px",
        "input_placeholder_color": "*neutral_400",
        "input_placeholder_color_dark": "#69757a",
        "checkbox_border_color": "*neutral_300",
        "checkbox_border_color_dark": "#48545a",
        "checkbox_background_color_selected": "*primary_600",
        "checkbox_background_color_selected_dark": "*primary_500",
        "checkbox_label_background_fill": "transparent",
        "checkbox_label_background_fill_dark": "transparent",
        "checkbox_label_background_fill_hover": "transparent",
        "checkbox_label_background_fill_hover_dark": "transparent",
        "checkbox_label_background_fill_selected": "transparent",
        "checkbox_label_background_fill_selected_dark": "transparent",
        "checkbox_label_border_width": "0px",
        "checkbox_label_border_width_dark": "0px",
        "checkbox_label_padding": "4px 0",
        "checkbox_label_shadow": "none",
        "checkbox_label_text_color_selected": "*body_text_color",
        "button_border_width": "1px",
        "button_border_width_dark": "1px",
        "button_large_radius": "8px",
        "button_medium_radius": "8px",
        "button_small_radius": "8px",
        "button_large_text_weight": "600",
        "button_medium_text_weight": "600",
        "button_medium_text_size": "14px",
        "button_large_text_size": "15px",
        "button_small_text_weight": "400",
        "button_primary_background_fill": "*primary_600",
        "button_primary_background_fill_hover": "*primary_700",
        "button_primary_background_fill_dark": "*primary_600",
        "button_primary_background_fill_hover_dark": "*primary_700",
        "button_primary_border_color": "transparent",
        "button_primary_border_color_dark": "transparent",
        "button_primary_text_color": "white",
        "button_primary_text_color_dark": "white",
        "button_primary_shadow": "none",
        "button_secondary_background_fill": "white",
        "button_secondary_background_fill_hover": "*neutral_100",
        "button_secondary_background_fill_dark": "#1b2123",
        "button_secondary_background_fill_hover_dark": "#242c2f",
        "button_secondary_border_color": "*neutral_300",
        "button_secondary_border_color_dark": "#343d40",
        "button_secondary_text_color": "*neutral_800",
        "button_secondary_text_color_dark": "#dde2e3",
        "button_secondary_shadow": "none",
        "table_even_background_fill": "transparent",
        "table_odd_background_fill": "transparent",
        "slider_color": "*primary_600",
        "slider_color_dark": "*primary_400",
        "loader_color": "*primary_500",
        "chatbot_text_size": "15px",
        "stat_background_fill": "*primary_400",
    }
