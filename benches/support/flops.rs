//! The arithmetic of a training step.

use candle_attention::model::ModelConfig;

/// Floating-point operations of a step, forward and backward: 6 * (weights of the matrix products, a tied head counted once)
/// * B * T, and 7 * L * B * T^2 * C for causal attention. What the optimizer computes is not among them.
pub fn flops(config: &ModelConfig, batch_size: usize) -> f64 {
    let is_product =
        |name: &str| !name.starts_with("position") && (config.tie_embeddings || !name.starts_with("token_embedding"));
    let matrices = config.parameters().into_iter().filter(|(name, shape)| shape.len() == 2 && is_product(name));
    let weights: usize = matrices.map(|(_, shape)| shape[0] * shape[1]).sum();
    let (b, t, c, l) =
        (batch_size as f64, config.context_len as f64, config.embed_dim as f64, config.num_layers as f64);
    6.0 * weights as f64 * b * t + 7.0 * l * b * t * t * c
}
