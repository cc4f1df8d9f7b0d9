// What the Runs page does beyond Gradio.
