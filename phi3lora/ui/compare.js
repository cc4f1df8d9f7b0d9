// What the Compare page does beyond Gradio.
