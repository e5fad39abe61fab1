"""A client without training: gives a delta of the size asked for.

Every number is another one: what comes twice the engine sends once.
"""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_round.sizes import TENSORS, shape

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the delta."""
    mib = int(context.run_config["mib"])
    rng = np.random.default_rng(context.node_id)
    delta = ArrayRecord([rng.random(shape(mib), np.float32) for _ in range(TENSORS)])
    content = RecordDict({"arrays": delta, "metrics": MetricRecord({"num-examples": 10})})
    return Message(content=content, reply_to=message)
