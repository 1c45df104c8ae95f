//! Threads in the place of processes: what they get from each other, and that sums have the same bits on any number of them.

use candle_core::{DType, Device};

use super::threads::on_threads;
use super::*;
use crate::cpu::testing::randn;

/// The gradients of a shard: of several blocks, of one, of none.
fn gradients(shard: usize) -> Vec<Tensor> {
    let shapes: [&[usize]; 4] = [&[3, 5], &[97, 131], &[], &[0]];
    let of = |(i, shape): (usize, &&[usize])| {
        let tensor = randn((10 * shard + i) as u64, shape).to_dtype(DType::F32).unwrap();
        // Of very different size, so that the order of additions shows.
        (tensor * f64::powi(10.0, (shard % 4) as i32)).unwrap()
    };
    shapes.iter().enumerate().map(of).collect()
}

fn bits(tensors: &[Tensor]) -> Vec<Vec<u32>> {
    let of = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    tensors.iter().map(|tensor| of(tensor).into_iter().map(f32::to_bits).collect()).collect()
}

/// One by one, over the tree as it is drawn.
fn over_the_tree(shards: std::ops::Range<usize>) -> Vec<Tensor> {
    if shards.len() == 1 {
        return gradients(shards.start);
    }
    let half = shards.len().next_power_of_two() / 2;
    let [left, right] = [shards.start..shards.start + half, shards.start + half..shards.end].map(over_the_tree);
    left.iter().zip(&right).map(|(a, b)| (a + b).unwrap()).collect()
}

#[test]
fn gradients_are_added_over_the_same_tree_on_any_number_of_processes() {
    for shards in [1, 2, 4, 6, 7] {
        let expected = bits(&over_the_tree(0..shards));
        for count in 1..=shards {
            let all = on_threads(count, |processes| {
                let own = share(shards, &*processes).map(|shard| Ok(gradients(shard)));
                bits(&sum_gradients(&*processes, shards, own).unwrap())
            });
            assert!(all.iter().all(|got| *got == expected), "{shards} shards on {count} processes");
        }
    }
}

/// By all processes, so that none waits for another.
#[test]
fn gradients_that_do_not_fit_together_are_refused() {
    let refused = |count: usize, shards: usize, own: fn(usize) -> Result<Vec<Tensor>>| {
        on_threads(count, |processes| {
            let own: Vec<_> = share(shards, &*processes).map(own).collect();
            sum_gradients(&*processes, shards, own).unwrap_err().to_string()
        })
    };
    let others = |shard: usize| {
        let mut gradients = gradients(shard);
        if shard == 1 {
            gradients.swap(0, 1);
        }
        Ok(gradients)
    };
    assert!(refused(1, 2, others)[0].contains("of the same shapes from every shard"));
    let told = refused(2, 2, others);
    assert!(told.iter().all(|told| told.contains("process 0 has") && told.contains("[97, 131], [3, 5]")), "{told:?}");
    let told = refused(2, 2, |shard| if shard == 1 { bail!("no gradient") } else { Ok(gradients(shard)) });
    assert!(told[0].contains("process 1 has an error: no gradient") && told[1].starts_with("no gradient"), "{told:?}");
    let told = refused(3, 2, |shard| Ok(gradients(shard)));
    assert!(told.iter().all(|told| told.contains("at least a shard for each of 3 processes, got 2")), "{told:?}");
    let too_few = on_threads(2, |processes| sum_gradients(&*processes, 4, [Ok(gradients(0))]).unwrap_err().to_string());
    assert!(too_few[1].contains("of shards 2..4, got those of 1"), "{too_few:?}");
    let f64s = vec![Tensor::zeros(3, DType::F64, &Device::Cpu).unwrap()];
    assert!(sum_gradients(&Alone, 1, [Ok(f64s)]).unwrap_err().to_string().contains("got F64"));
}

#[test]
fn bytes_of_any_length_reach_every_process() {
    let all = on_threads(3, |processes| gather(&*processes, &vec![7 + processes.rank() as u8; 2 * processes.rank()]));
    for got in all {
        assert_eq!(got.unwrap(), [vec![], vec![8; 2], vec![9; 4]]);
    }
    assert_eq!(gather(&Alone, b"alone").unwrap(), [b"alone".to_vec()]);
}

#[test]
fn every_shard_has_one_process_and_every_process_a_shard() {
    for shards in 1..20 {
        for count in 1..=shards {
            let shares: Vec<_> = (0..count).map(|rank| share_of(shards, rank, count)).collect();
            assert!(shares.iter().all(|share| share.len().abs_diff(shards / count) <= 1 && !share.is_empty()));
            assert_eq!(shares.into_iter().flatten().collect::<Vec<_>>(), (0..shards).collect::<Vec<_>>());
        }
    }
}
