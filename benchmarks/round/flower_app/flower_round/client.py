"""A client without training: gives a delta of the size asked for."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

TENSORS = 16
RANK = 16

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the delta."""
    shape = (RANK, int(context.run_config["mib"]) * 2**20 // 4 // RANK // TENSORS)
    delta = ArrayRecord([np.full(shape, 1e-3, np.float32)] * TENSORS)
    content = RecordDict({"arrays": delta, "metrics": MetricRecord({"num-examples": 10})})
    return Message(content=content, reply_to=message)
