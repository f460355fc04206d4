"""Published checkpoints: read into our model folders, and written back. `pairmill convert` is its command.

files      state dicts from .pth, .pt, .bin, .safetensors and TorchScript archives; no code of theirs runs
placing    names and shapes: published -> ours, strictly, and back
formats    what is known of each published format, as data
sizes      a recipe's Config from shapes, a named size, a file and overrides
reading    a published file -> a model folder
parts      a ViT and a BERT as the papers start from -> a model folder
writing    a model folder -> a published file, or a folder for open_clip or transformers
starting   a model folder -> the first weights of a training run
tokenizers OpenAI's byte-pair vocabulary as a tokenizer folder
"""
