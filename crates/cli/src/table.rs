//! Tables of box-drawing characters, as etcdctl 3.7 draws them.

/// A head and rows.
#[derive(Debug, Default)]
pub struct Table {
    /// The titles of the columns.
    pub head: Vec<&'static str>,
    /// As many cells each as there are titles.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// The table as text: titles centred, cells to the right.
    pub fn draw(&self) -> String {
        let width_of = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.max().unwrap_or(0).max(self.head[column].chars().count())
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width_of).collect();
        let rule = |left: &str, middle: &str, right: &str| {
            let dashes: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
            format!("{left}{}{right}\n", dashes.join(middle))
        };
        let line = |cells: Vec<String>| format!("│ {} │\n", cells.join(" │ "));
        let mut out = rule("┌", "┬", "┐");
        out += &line(self.head.iter().zip(&widths).map(|(title, width)| format!("{title:^width$}")).collect());
        out += &rule("├", "┼", "┤");
        for row in &self.rows {
            out += &line(row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect());
        }
        out + &rule("└", "┴", "┘")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = vec![vec!["1".into(), "long cell".into()], vec!["22".into(), String::new()]];
        let table = Table { head: vec!["ID", "NAME"], rows };
        let expected = "┌────┬───────────┐\n│ ID │   NAME    │\n├────┼───────────┤\n│  1 │ long cell │\n│ 22 │           │\n└────┴───────────┘\n";
        assert_eq!(table.draw(), expected);
    }
}
