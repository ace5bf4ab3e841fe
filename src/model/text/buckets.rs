//! How many rows a decoding pass is padded to, so that few shapes serve all numbers of rows.

/// Up to here a multiple of this is a bucket.
const FINE_STEP: usize = 8;
const FINE_LIMIT: usize = 256;
/// Beyond, a multiple of this.
const COARSE_STEP: usize = 32;

/// The bucket of so many rows: 1, 2, 4, 8, 16, 24, 32, .. 256, 288, 320, .. From 64 rows on padding is an eighth at
/// most; below it costs little, since such a pass is as long as reading the weights takes.
pub(super) fn bucket_of(rows: usize) -> usize {
    match rows {
        0..=2 => rows,
        3..=4 => 4,
        5..=FINE_LIMIT => rows.next_multiple_of(FINE_STEP),
        _ => rows.next_multiple_of(COARSE_STEP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_rows_fits_the_smallest_bucket_that_holds_it() {
        let mut buckets: Vec<usize> = (1..=512).map(bucket_of).collect();
        assert!(buckets.is_sorted());
        for rows in 1..=512 {
            let bucket = bucket_of(rows);
            assert!(bucket >= rows, "{rows} rows in a bucket of {bucket}");
            assert_eq!(bucket_of(bucket), bucket, "{rows} rows");
            assert!(rows < 64 || bucket * 8 <= rows * 9, "{rows} rows");
        }
        buckets.dedup();
        let head = [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64];
        assert_eq!(buckets[..11], head);
        // A recording each.
        assert_eq!(buckets.len(), 3 + 32 + 8);
        assert_eq!(bucket_of(0), 0);
    }
}
