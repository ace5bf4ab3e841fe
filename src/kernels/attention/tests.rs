//! Our attention against stock operations over the plain layout, and against itself in other company.

use super::*;
use crate::kernels::isa::Isa;
use crate::kernels::test_numbers::{largest, numbers};
use crate::kernels::threads;

const KV_HEADS: usize = 3;
const GROUP: usize = 3;

fn tensor(values: Vec<f32>, heads: usize, head_dim: usize) -> Tensor {
    let tokens = values.len() / (heads * head_dim);
    Tensor::from_vec(values, (tokens, heads, head_dim), &Device::Cpu).unwrap()
}

/// A sequence's K, V and q rows at one position: always the same numbers.
fn rows(slot: u32, position: u32, heads: usize, head_dim: usize, what: u64) -> Vec<f32> {
    numbers(
        heads * head_dim,
        u64::from(slot) * 1_000_003 + u64::from(position) * 101 + what,
    )
}

fn rows_of(layout: &TokenLayout, heads: usize, head_dim: usize, what: u64) -> Tensor {
    let tokens = layout.slots().iter().zip(layout.positions());
    tensor(
        tokens
            .flat_map(|(&slot, &position)| rows(slot, position, heads, head_dim, what))
            .collect(),
        heads,
        head_dim,
    )
}

/// Slot `s` owns blocks `s`, `s + 4`, `s + 8`, ..
fn tables() -> Vec<Vec<u32>> {
    (0..4)
        .map(|slot| (0..6).map(|index| slot + 4 * index).collect())
        .collect()
}

fn layout(tokens: &[(u32, u32)]) -> TokenLayout {
    let (slots, positions) = tokens.iter().copied().unzip();
    TokenLayout::new(slots, positions, tables()).unwrap()
}

struct Setup {
    head_dim: usize,
    dtype: DType,
    options: AttentionOptions,
}

impl Setup {
    /// A store that holds 180 tokens of each slot, written by `write`.
    fn filled(
        &self,
        kv: PagedKv,
        write: impl Fn(&PagedKv, &Tensor, &Tensor, &TokenLayout) -> Result<()>,
    ) -> PagedKv {
        let everything: Vec<_> = (0..4)
            .flat_map(|slot| (0..180).map(move |position| (slot, position)))
            .collect();
        let layout = layout(&everything);
        let k = rows_of(&layout, KV_HEADS, self.head_dim, 1);
        let v = rows_of(&layout, KV_HEADS, self.head_dim, 2);
        write(&kv, &k, &v, &layout).unwrap();
        kv
    }

    fn ours(&self) -> PagedKv {
        self.filled(
            PagedKv::zeros(24, KV_HEADS, self.head_dim, self.dtype, &Device::Cpu).unwrap(),
            write_kv,
        )
    }

    fn attend(&self, kv: &PagedKv, tokens: &[(u32, u32)]) -> Vec<f32> {
        let layout = layout(tokens);
        let q = rows_of(&layout, KV_HEADS * GROUP, self.head_dim, 3);
        let output = paged_attention(&q, kv, &layout, &self.options).unwrap();
        output.flatten_all().unwrap().to_vec1().unwrap()
    }
}

const PLAIN: AttentionOptions = AttentionOptions {
    scale: 0.3,
    window: None,
    softcap: None,
};

fn setups() -> Vec<Setup> {
    let mut setups = Vec::new();
    for head_dim in [64, 80, 33, 128] {
        for dtype in [DType::F32, DType::F16] {
            for options in [
                PLAIN,
                AttentionOptions {
                    window: Some(40),
                    ..PLAIN
                },
                AttentionOptions {
                    window: Some(1),
                    softcap: Some(2.0),
                    ..PLAIN
                },
                AttentionOptions {
                    softcap: Some(5.0),
                    ..PLAIN
                },
            ] {
                setups.push(Setup {
                    head_dim,
                    dtype,
                    options,
                });
            }
        }
    }
    setups
}

/// Decode rows and prefill chunks of several slots, out of order.
fn mixed_pass() -> Vec<(u32, u32)> {
    let mut tokens = vec![(3, 0), (1, 31), (0, 32), (2, 179)];
    tokens.extend((100..137).map(|position| (1, position)));
    tokens.extend([(0, 63), (3, 100)]);
    tokens
}

#[test]
fn attention_equals_stock_operations() {
    for setup in setups() {
        let plain =
            PagedKv::token_major_zeros(24, KV_HEADS, setup.head_dim, setup.dtype, &Device::Cpu)
                .unwrap();
        let plain = setup.filled(plain, reference::write_kv);
        let layout = layout(&mixed_pass());
        let q = rows_of(&layout, KV_HEADS * GROUP, setup.head_dim, 3);
        let expected = reference::paged_attention(&q, &plain, &layout, &setup.options).unwrap();
        let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
        let output = setup.attend(&setup.ours(), &mixed_pass());
        let difference: Vec<f32> = output.iter().zip(&expected).map(|(a, b)| a - b).collect();
        let worst = largest(&difference);
        assert!(
            worst < 2e-5,
            "head_dim {} {:?} {:?}: {worst}",
            setup.head_dim,
            setup.dtype,
            setup.options
        );
    }
}

#[test]
fn a_token_does_not_depend_on_its_company() {
    for setup in setups() {
        let kv = setup.ours();
        let row = KV_HEADS * GROUP * setup.head_dim;
        let together = setup.attend(&kv, &mixed_pass());
        for (token, output) in mixed_pass().into_iter().zip(together.chunks(row)) {
            assert_eq!(setup.attend(&kv, &[token]), output, "token {token:?}");
        }
    }
}

#[test]
fn what_a_token_may_not_see_cannot_reach_it_even_as_nan() {
    let setup = Setup {
        head_dim: 64,
        dtype: DType::F32,
        options: AttentionOptions {
            window: Some(10),
            ..PLAIN
        },
    };
    let kv = setup.ours();
    let before = setup.attend(&kv, &[(0, 70)]);
    let poisoned: Vec<_> = (0..61)
        .chain(71..180)
        .map(|position| (0, position))
        .collect();
    let nan = tensor(vec![f32::NAN; poisoned.len() * KV_HEADS * 64], KV_HEADS, 64);
    write_kv(&kv, &nan, &nan, &layout(&poisoned)).unwrap();
    assert_eq!(setup.attend(&kv, &[(0, 70)]), before);
    assert!(
        setup
            .attend(&kv, &[(0, 71)])
            .iter()
            .all(|value| value.is_nan())
    );
}

#[test]
fn layouts_that_do_not_fit_are_refused() {
    assert!(TokenLayout::new(vec![0], vec![0, 1], tables()).is_err());
    assert!(
        TokenLayout::new(vec![4], vec![0], tables()).is_err(),
        "a slot without a table"
    );
    assert!(
        TokenLayout::new(vec![0], vec![6 * 32], tables()).is_err(),
        "a position past the table"
    );
    let kv = PagedKv::zeros(2, 1, 8, DType::F32, &Device::Cpu).unwrap();
    let outside = TokenLayout::new(vec![0], vec![0], vec![vec![2]]).unwrap();
    let row = tensor(vec![0.0; 8], 1, 8);
    assert!(write_kv(&kv, &row, &row, &outside).is_err());
    assert!(paged_attention(&row, &kv, &outside, &PLAIN).is_err());
    assert!(PagedKv::zeros(2, 1, 8, DType::BF16, &Device::Cpu).is_err());
}

#[test]
fn instruction_sets_agree_bit_for_bit() {
    for setup in setups() {
        let stores = Isa::for_each(|| setup.ours());
        let outputs = Isa::for_each(|| setup.attend(&stores[0], &mixed_pass()));
        for (store, output) in stores.iter().zip(&outputs) {
            assert_eq!(*output, outputs[0]);
            assert_eq!(
                setup.attend(store, &mixed_pass()),
                outputs[0],
                "written with other instructions"
            );
        }
    }
}

/// Few queries with much to see are spread over threads; beside others, one thread walks through what they see.
#[test]
fn a_long_context_may_be_spread_over_threads() {
    const HEAD_DIM: usize = 64;
    const ROW: usize = GROUP * HEAD_DIM;
    // Of slots 0 and 1, whose blocks are in order and backwards; the others have one block each.
    const LONG_BLOCKS: u32 = 50;
    // As many as keep all threads busy without any splitting.
    let others = threads::compute_threads() as u32;
    let mut tables: Vec<Vec<u32>> = vec![
        (0..LONG_BLOCKS).collect(),
        (LONG_BLOCKS..2 * LONG_BLOCKS).rev().collect(),
    ];
    tables.extend((0..others).map(|other| vec![2 * LONG_BLOCKS + other]));
    let blocks = (2 * LONG_BLOCKS + others) as usize;
    let layout = |tokens: &[(u32, u32)]| {
        let (slots, positions) = tokens.iter().copied().unzip();
        TokenLayout::new(slots, positions, tables.clone()).unwrap()
    };
    let everything: Vec<_> = (0..2)
        .flat_map(|slot| (0..1600).map(move |position| (slot, position)))
        .chain((2..2 + others).flat_map(|slot| (0..4).map(move |position| (slot, position))))
        .collect();
    let everything = layout(&everything);
    let k = rows_of(&everything, 1, HEAD_DIM, 1);
    let v = rows_of(&everything, 1, HEAD_DIM, 2);
    for (dtype, window) in [
        (DType::F32, None),
        (DType::F16, None),
        (DType::F16, Some(700)),
    ] {
        let options = AttentionOptions { window, ..PLAIN };
        let kv = PagedKv::zeros(blocks, 1, HEAD_DIM, dtype, &Device::Cpu).unwrap();
        let plain = PagedKv::token_major_zeros(blocks, 1, HEAD_DIM, dtype, &Device::Cpu).unwrap();
        write_kv(&kv, &k, &v, &everything).unwrap();
        reference::write_kv(&plain, &k, &v, &everything).unwrap();
        let attend = |tokens: &[(u32, u32)]| -> Vec<f32> {
            let layout = layout(tokens);
            let q = rows_of(&layout, GROUP, HEAD_DIM, 3);
            let output = paged_attention(&q, &kv, &layout, &options).unwrap();
            output.flatten_all().unwrap().to_vec1().unwrap()
        };
        // Single queries, and chunks across the ends of segments: as one task, and as several. The window of 700
        // leaves the first segment at position 1211.
        for chunk in [
            511..512,
            512..513,
            1023..1024,
            1024..1025,
            1599..1600,
            505..520,
            1205..1217,
            500..530,
            1190..1230,
        ] {
            let case = format!("{dtype:?} {window:?} positions {chunk:?}");
            let tokens: Vec<_> = chunk.clone().map(|position| (0, position)).collect();
            let chunk_alone = attend(&tokens);

            let mut company: Vec<_> = (2..2 + others).map(|slot| (slot, 3)).collect();
            let first = company.len() * ROW;
            company.extend(&tokens);
            company.push((1, 1400));
            let together = attend(&company);
            assert_eq!(
                chunk_alone,
                together[first..first + tokens.len() * ROW],
                "{case}"
            );
            for (token, output) in tokens.iter().zip(chunk_alone.chunks(ROW)) {
                assert_eq!(attend(&[*token]), output, "{case}, token {token:?}");
            }

            let layout = layout(&tokens);
            let q = rows_of(&layout, GROUP, HEAD_DIM, 3);
            let stock = reference::paged_attention(&q, &plain, &layout, &options).unwrap();
            let stock: Vec<f32> = stock.flatten_all().unwrap().to_vec1().unwrap();
            let difference: Vec<f32> = chunk_alone.iter().zip(&stock).map(|(a, b)| a - b).collect();
            assert!(largest(&difference) < 2e-5, "{case}");
        }
    }
}
