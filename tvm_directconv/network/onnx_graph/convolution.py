"""Rules for convolutions and for what follows them in training."""

from .graph import Graph, Node, Refusal, rule


@rule("BatchNormalization")
def batch_normalization(graph: Graph, node: Node) -> None:
    """Refuse statistics of a batch."""
    if node.get("training_mode") or len(node.outputs) > 1:
        raise Refusal("it is in training mode: export the model for inference")


@rule("ConvTranspose")
def conv_transpose(graph: Graph, node: Node) -> None:
    """Refuse what TVM's converter takes no notice of."""
    if node.get("output_shape"):
        raise Refusal("output_shape is not supported")
