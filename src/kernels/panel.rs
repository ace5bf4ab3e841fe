//! Cutting the rows of a call into panels that kernels keep in registers.

/// Consecutive rows that pass a tile together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Panel {
    /// The first row.
    pub first_row: usize,
    /// 1, 2, 3, 4, 6 or 8.
    pub rows: usize,
}

/// Covers `rows` rows with panels of at most `max_rows` (4 or 8), which never cross a multiple of `max_rows`.
pub(super) fn split_rows(rows: usize, max_rows: usize) -> Vec<Panel> {
    let mut panels = Vec::with_capacity(rows.div_ceil(max_rows) + 1);
    let mut first_row = 0;
    while first_row < rows {
        let rows = match (rows - first_row).min(max_rows) {
            7 => 4,
            5 => 3,
            rows => rows,
        };
        panels.push(Panel { first_row, rows });
        first_row += rows;
    }
    panels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_cover_all_rows_once() {
        for max_rows in [4, 8] {
            for rows in 0..40 {
                let mut next = 0;
                for panel in split_rows(rows, max_rows) {
                    assert_eq!(panel.first_row, next);
                    assert!(matches!(panel.rows, 1 | 2 | 3 | 4 | 6 | 8) && panel.rows <= max_rows);
                    assert_eq!(
                        panel.first_row / max_rows,
                        (panel.first_row + panel.rows - 1) / max_rows
                    );
                    next += panel.rows;
                }
                assert_eq!(next, rows);
            }
        }
    }
}
