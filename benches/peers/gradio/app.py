"""The peer: a real Gradio application with the loads of `measure.py`. Needs `gradio`; talks to nobody.

    python app.py PORT [LIMIT] [STATUS_UPDATE_RATE]
"""

import asyncio
import sys

import gradio as gr

port = int(sys.argv[1])
limit = int(sys.argv[2]) if len(sys.argv) > 2 else 1
rate = sys.argv[3] if len(sys.argv) > 3 else "auto"


def noop(text):
    return text


async def stream(count, per_second):
    """One letter more, so many times."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    text = ""
    for number in range(int(count)):
        text += "x"
        yield text
        await asyncio.sleep(max(0, began + (number + 1) / per_second - loop.time()))


with gr.Blocks() as demo:
    text, count, per_second = gr.Textbox(), gr.Number(), gr.Number()
    button = gr.Button()
    button.click(noop, text, text, api_name="noop", concurrency_limit=limit)
    button.click(stream, [count, per_second], text, api_name="stream", concurrency_limit=limit)

demo.queue(max_size=None, status_update_rate=rate if rate == "auto" else float(rate))
demo.launch(server_name="127.0.0.1", server_port=port, quiet=True, share=False, max_threads=2000)
