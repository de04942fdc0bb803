"""The elementwise part of the step: the filtered gradient and the diagonal method that is grafted.

Grafting takes the step length from a diagonal method and the direction from Shampoo.

The diagonal method's second moment is `V <- beta2 V + (1 - beta2) G^2` (AdaGrad: the plain sum), its step
`H / (sqrt(V / (1 - beta2^t)) + epsilon)`; epsilon is added after the root, as in torch.optim.
Source: Agarwal et al., arXiv:2002.11803; Anil et al., arXiv:2002.09018.
"""

import torch
from torch import Tensor

from optim.shampoo.configs import AdaGradGrafting, AdamGrafting, Grafting, RMSpropGrafting, SGDGrafting


def filter_gradient(grad: Tensor, average: Tensor, *, beta1: float, beta3: float, correction: float) -> None:
    """Replaces G by H: the average `m <- beta1 m + (1 - beta1) G`, with its bias divided out, in place.

    With another `beta3` it is `beta3 m + (1 - beta3) G` of the old average: a look ahead, as in Nesterov's momentum.
    """
    if beta3 == beta1:
        average.lerp_(grad, 1 - beta1)
        torch.div(average, correction, out=grad)
    else:
        filtered = average.lerp(grad, 1 - beta3)
        average.lerp_(grad, 1 - beta1)
        torch.div(filtered, correction, out=grad)


def has_second_moment(config: Grafting | None) -> bool:
    return config is not None and not isinstance(config, SGDGrafting)


def update_second_moment(second_moment: Tensor, grad: Tensor, config: Grafting) -> None:
    """Adds the gradient to `V`, in place; any shape, elementwise."""
    if isinstance(config, AdaGradGrafting):
        second_moment.addcmul_(grad, grad)
    elif isinstance(config, RMSpropGrafting | AdamGrafting):
        second_moment.mul_(config.beta2).addcmul_(grad, grad, value=1 - config.beta2)


def grafted_step(
    filtered_grad: Tensor, second_moment: Tensor, config: Grafting, *, correction: float, out: Tensor
) -> Tensor:
    """The diagonal method's direction for `filtered_grad`, written to `out` (which may not be an argument).

    `correction` is Adam's `1 - beta2^t`; the others do not use it.
    """
    if isinstance(config, SGDGrafting):
        return out.copy_(filtered_grad)
    torch.sqrt(second_moment, out=out)
    if isinstance(config, AdamGrafting):
        out.div_(correction**0.5)
    return torch.div(filtered_grad, out.add_(config.epsilon), out=out)
