"""Soft quantization in the training loops of other libraries, each imported on demand.

- `pysoftq.integrations.lightning`: a callback of Lightning's Trainer;
- `pysoftq.integrations.transformers`: a callback of Hugging Face's Trainer;
- `pysoftq.integrations.accelerate`: a loop of your own with accelerate.

Each adds the coupling's force at the beginning of ``optimizer.step()``: after clipping and
unscaling, and once per step, however many batches a step accumulates.
"""
