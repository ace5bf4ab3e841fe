//! Attention, rotary embedding and page writes on the emulated card, against stock operations.

use candle_core::Device;

use super::super::emulator::{both_ways, is_skipped};
use super::super::rope;
use super::super::test_cases::{DTYPES, assert_near, tensor, tolerance, values};
use super::*;
use crate::kernels::attention::{HeadNorms, TokenLayout};
use crate::kernels::reference;
use crate::kernels::test_numbers::numbers;

/// A model's attention, and the numbers it is kept in.
#[derive(Clone, Copy, Debug)]
struct Setup {
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    kv: DType,
    q: DType,
    options: AttentionOptions,
}

const PLAIN: AttentionOptions = AttentionOptions {
    scale: 0.2,
    window: None,
    softcap: None,
};

const SLOTS: u32 = 3;
const TABLE_BLOCKS: u32 = 20;

impl Setup {
    fn store(&self) -> PagedKv {
        let blocks = (SLOTS * TABLE_BLOCKS) as usize;
        PagedKv::token_major_zeros(blocks, self.kv_heads, self.head_dim, self.kv, &Device::Cpu)
            .unwrap()
    }

    /// A store that holds `contexts[s]` positions of each slot `s`; NaN in all others.
    fn filled(&self, contexts: [u32; 3]) -> PagedKv {
        let kv = self.store();
        let fill = |from: Vec<(u32, u32)>, nan: bool| {
            let layout = layout(&from);
            let shape = [from.len(), self.kv_heads, self.head_dim];
            let rows = |what: u64| {
                let row = |&(slot, position): &(u32, u32)| {
                    let seed = u64::from(slot) * 1_000_003 + u64::from(position) * 101 + what;
                    match nan {
                        true => vec![f32::NAN; shape[1] * shape[2]],
                        false => numbers(shape[1] * shape[2], seed),
                    }
                };
                let rows: Vec<f32> = from.iter().flat_map(row).collect();
                Tensor::from_vec(rows, &shape[..], &Device::Cpu).unwrap()
            };
            reference::write_kv(&kv, &rows(1), &rows(2), &layout).unwrap();
        };
        let positions = |slot: u32, range: std::ops::Range<u32>| range.map(move |at| (slot, at));
        let (mut written, mut unwritten) = (Vec::new(), Vec::new());
        for (slot, context) in (0..).zip(contexts) {
            written.extend(positions(slot, 0..context));
            unwritten.extend(positions(slot, context..TABLE_BLOCKS * 32));
        }
        fill(written, false);
        fill(unwritten, true);
        kv
    }

    fn q(&self, tokens: usize) -> Tensor {
        let q = tensor(&[tokens, self.kv_heads * self.group, self.head_dim], 77);
        q.to_dtype(self.q).unwrap()
    }

    fn check(&self, contexts: [u32; 3], tokens: &[(u32, u32)]) {
        let kv = self.filled(contexts);
        let layout = layout(tokens);
        let q = self.q(tokens.len());
        let wide = q.to_dtype(DType::F32).unwrap();
        let expected = reference::paged_attention(&wide, &kv, &layout, &self.options).unwrap();
        let device = layout.on(&Device::Cpu).unwrap();
        let output =
            both_ways(|| values(&paged_attention(&q, &kv, device, &self.options).unwrap()));
        // On the tensor cores queries and weights are rounded as K and V are.
        let tolerance = tolerance(self.q).max(match device.runs() {
            Some(_) => 2.0 * tolerance(self.kv),
            None => 2e-5,
        });
        assert_near(&output, &values(&expected), tolerance, &format!("{self:?}"));
    }
}

/// Slot `s` owns blocks `s`, `s + 3`, .. backwards.
fn layout(tokens: &[(u32, u32)]) -> TokenLayout {
    let (slots, positions) = tokens.iter().copied().unzip();
    let table = |slot| {
        (0..TABLE_BLOCKS)
            .map(|index| slot + SLOTS * (TABLE_BLOCKS - 1 - index))
            .collect()
    };
    TokenLayout::new(slots, positions, (0..SLOTS).map(table).collect()).unwrap()
}

/// Kinds of options: all, a window that begins inside a page, one of a single position, a cap.
fn options() -> [AttentionOptions; 4] {
    [
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
    ]
}

/// Heads of every kind of kernel: (head_dim, heads that share K/V, dtype).
const KINDS: [(usize, usize, DType); 12] = [
    (64, 4, DType::F16),
    (32, 1, DType::BF16),
    (80, 3, DType::F16),
    (96, 2, DType::BF16),
    (128, 8, DType::F16),
    (128, 5, DType::BF16),
    (256, 1, DType::F16),
    (256, 9, DType::BF16),
    (32, 2, DType::F32),
    (64, 1, DType::F32),
    (128, 5, DType::F32),
    (256, 4, DType::F32),
];

#[test]
fn single_tokens_attend_as_stock_operations_do() {
    if is_skipped() {
        return;
    }
    // A first token, the ends of pages and of pieces, and a context of three pieces.
    let tokens = [(0, 0), (1, 31), (1, 32), (2, 255), (2, 256), (0, 600)];
    for (index, (head_dim, group, kv)) in KINDS.into_iter().enumerate() {
        // One kind of options with each kind of heads.
        let setup = Setup {
            kv_heads: 2,
            group,
            head_dim,
            kv,
            q: DTYPES[index % 3],
            options: options()[index % 4],
        };
        setup.check([601, 40, 260], &tokens);
    }
}

#[test]
fn a_token_does_not_depend_on_its_company_or_on_the_room_for_its_context() {
    if is_skipped() {
        return;
    }
    let setup = Setup {
        kv_heads: 2,
        group: 3,
        head_dim: 64,
        kv: DType::F16,
        q: DType::F32,
        options: PLAIN,
    };
    let kv = setup.filled([601, 40, 260]);
    let tokens = [(0, 0), (1, 31), (2, 255), (2, 256), (0, 600)];
    let q = setup.q(tokens.len());
    let attend = |tokens: &[(u32, u32)], q: &Tensor| {
        values(&paged_attention(q, &kv, layout(tokens).on(&Device::Cpu).unwrap(), &PLAIN).unwrap())
    };
    let together = attend(&tokens, &q);
    let row = 6 * 64;
    for (index, token) in tokens.iter().enumerate() {
        let alone = attend(&[*token], &q.narrow(0, index, 1).unwrap());
        let expected = &together[index * row..][..row];
        // With one piece the sum is divided at once, with several after the merge: of one piece, the same.
        assert_eq!(alone, expected, "token {token:?}");
    }
}

#[test]
fn runs_attend_as_stock_operations_do() {
    if is_skipped() {
        return;
    }
    let run = |slot: u32, positions: std::ops::Range<u32>| positions.map(move |at| (slot, at));
    // A chunk from the start, one in the middle across pages, and single tokens between them.
    let mut tokens = vec![(2, 17)];
    tokens.extend(run(0, 0..23));
    tokens.extend([(2, 200)]);
    tokens.extend(run(1, 60..101));
    for (index, (head_dim, group, kv)) in KINDS.into_iter().enumerate() {
        if kv == DType::F32 {
            continue;
        }
        let setup = Setup {
            kv_heads: 1,
            group,
            head_dim,
            kv,
            q: DTYPES[(index + 1) % 3],
            options: options()[index % 4],
        };
        setup.check([23, 101, 201], &tokens);
    }
}

#[test]
fn heads_are_normed_rotated_and_stored_as_stock_operations_do() {
    if is_skipped() {
        return;
    }
    let tokens = [(0, 0), (1, 31), (1, 32), (2, 99), (0, 5)];
    // Columns that turn: all, some, and an odd number of pairs.
    for (head_dim, half, normed) in [
        (64, 32, true),
        (80, 16, false),
        (128, 64, true),
        (48, 23, true),
    ] {
        for dtype in DTYPES {
            for kv_dtype in DTYPES {
                let setup = Setup {
                    kv_heads: 2,
                    group: 3,
                    head_dim,
                    kv: kv_dtype,
                    q: dtype,
                    options: PLAIN,
                };
                let case = format!("{head_dim} {half} {dtype:?} {kv_dtype:?}");
                let angles = tensor(&[100, half], 5);
                let (cos, sin) = (angles.cos().unwrap(), angles.sin().unwrap());
                // Views of one product, as a fused layer gives them.
                let (heads, kv_heads) = (6, 2);
                let all = tensor(&[tokens.len(), (heads + 2 * kv_heads) * head_dim], 9);
                let all = all.to_dtype(dtype).unwrap();
                let all = all
                    .reshape((tokens.len(), heads + 2 * kv_heads, head_dim))
                    .unwrap();
                let part = |first: usize, heads: usize| all.narrow(1, first, heads).unwrap();
                let (q, k, v) = (
                    part(0, heads),
                    part(heads, kv_heads),
                    part(heads + kv_heads, kv_heads),
                );
                let (query_norm, key_norm) = (tensor(&[head_dim], 1), tensor(&[head_dim], 2));
                let norms = HeadNorms {
                    query: normed.then_some(&query_norm),
                    key: normed.then_some(&key_norm),
                    eps: 1e-6,
                };
                let layout = layout(&tokens);
                let device = layout.on(&Device::Cpu).unwrap();
                let kv = setup.store();
                let rotated = both_ways(|| {
                    let rotated =
                        rope::rotate_and_store(&q, &k, &v, &norms, &cos, &sin, &kv, device)
                            .unwrap();
                    (values(&rotated), values(&kv.k), values(&kv.v))
                });

                let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap().contiguous().unwrap();
                let turn = |x: &Tensor, norm: Option<&Tensor>| {
                    let (tokens, heads, _) = x.dims3().unwrap();
                    let mut x = wide(x);
                    if let Some(norm) = norm {
                        let flat = x.reshape((tokens * heads, head_dim)).unwrap();
                        x = reference::rms_norm(&flat, norm, norms.eps).unwrap();
                        x = x.reshape((tokens, heads, head_dim)).unwrap();
                    }
                    reference::rope(&x, &cos, &sin, layout.positions()).unwrap()
                };
                let expected = setup.store();
                let k_turned = turn(&k, norms.key);
                reference::write_kv(&expected, &k_turned, &wide(&v), &layout).unwrap();
                assert_near(
                    &rotated.0,
                    &values(&turn(&q, norms.query)),
                    tolerance(dtype),
                    &case,
                );
                let kv_tolerance = tolerance(kv_dtype);
                assert_near(&rotated.1, &values(&expected.k), kv_tolerance, &case);
                assert_near(&rotated.2, &values(&expected.v), kv_tolerance, &case);

                let alone = rope::rope(&q, &cos, &sin, device.positions()).unwrap();
                assert_near(
                    &values(&alone),
                    &values(&turn(&q, None)),
                    tolerance(dtype),
                    &case,
                );
                let written = setup.store();
                rope::write_kv(&written, &k, &v, device).unwrap();
                reference::write_kv(&expected, &wide(&k), &wide(&v), &layout).unwrap();
                assert_near(
                    &values(&written.k),
                    &values(&expected.k),
                    kv_tolerance,
                    &case,
                );
                assert_near(
                    &values(&written.v),
                    &values(&expected.v),
                    kv_tolerance,
                    &case,
                );
            }
        }
    }
}

#[test]
fn what_has_no_kernel_is_refused() {
    let setup = |head_dim, kv| Setup {
        kv_heads: 1,
        group: 1,
        head_dim,
        kv,
        q: DType::F32,
        options: PLAIN,
    };
    for (head_dim, kv, supported) in [
        (128, DType::F16, true),
        (256, DType::F32, true),
        (12, DType::F32, true),
        (12, DType::F16, false),
        (264, DType::BF16, false),
    ] {
        assert_eq!(
            supports(&setup(head_dim, kv).store()),
            supported,
            "{head_dim} {kv:?}"
        );
    }
    let odd = setup(12, DType::F16);
    let layout = layout(&[(0, 0)]);
    let device = layout.on(&Device::Cpu).unwrap();
    assert!(paged_attention(&odd.q(1), &odd.store(), device, &PLAIN).is_err());
}
