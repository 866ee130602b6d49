"""How fast a model generates and how big it is while it does, each model in a process of its own.

benchmark.py         models in, one report for each
client.py            the other side of a worker that holds a model
worker.py            in the worker: open, open again, run, measure memory
openvino_runtime.py  a plain loop over OpenVINO's inference request
vision_runtime.py    the same of vision-language models, with pictures as Optimum's class feeds them
genai_runtime.py     OpenVINO GenAI's pipeline
genai_vision_runtime.py   the same of vision-language models
picture_prompts.py   pictures and texts of chance
timing.py            from moments to the figures that people quote
ratios.py            one model's figures over another's
roofline.py          how close decoding comes to what memory allows
machine.py           how steady the machine is, its memory's speed, its energy
"""
