"""The variants: plain differentiable functions over packed batches, and the table that names them."""

from attnserve.models.attention import dot_product, elliptical, expressive
from attnserve.models.attention.dot_product import dot_product_attention as dot_product_attention
from attnserve.models.attention.dot_product import dot_product_weights as dot_product_weights
from attnserve.models.attention.elliptical import elliptical_attention as elliptical_attention
from attnserve.models.attention.elliptical import elliptical_metric as elliptical_metric
from attnserve.models.attention.expressive import expressive_attention as expressive_attention
from attnserve.models.attention.expressive import expressive_weights as expressive_weights
from attnserve.models.attention.variant import Variant as Variant

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        dot_product.VARIANT,
        expressive.VARIANT,
        elliptical.VARIANT,
    )
}
