//! Figures: medians and ranges, as a table for people and as JSON.

use serde_json::{Value, json};

/// One column of a table: a name, and how to round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) decimals: usize,
}

/// Several rounds of one contestant.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) name: String,
    /// For each round its figures, as many as there are columns.
    pub(crate) rounds: Vec<Vec<f64>>,
}

impl Row {
    /// The median of a column.
    pub(crate) fn median(&self, column: usize) -> f64 {
        let figures = self.figures(column);
        let middle = figures.len() / 2;
        let at = |index: usize| figures.get(index).copied().unwrap_or(f64::NAN);
        if figures.len().is_multiple_of(2) && middle > 0 {
            (at(middle - 1) + at(middle)) / 2.0
        } else {
            at(middle)
        }
    }

    fn figures(&self, column: usize) -> Vec<f64> {
        let mut figures: Vec<f64> =
            self.rounds.iter().filter_map(|round| round.get(column)).copied().collect();
        figures.sort_by(f64::total_cmp);
        figures
    }
}

/// Medians with their ranges.
pub(crate) fn table(columns: &[Column], rows: &[Row]) -> String {
    let mut text = String::from("| |");
    columns.iter().for_each(|column| text += &format!(" {} |", column.name));
    text += "\n|---|";
    text += &"---|".repeat(columns.len());
    for row in rows {
        text += &format!("\n| {} |", row.name);
        for (index, column) in columns.iter().enumerate() {
            let decimals = column.decimals;
            if row.median(index).is_nan() {
                text += " – |";
                continue;
            }
            text += &format!(" {:.decimals$}", row.median(index));
            if let [least, .., most] = row.figures(index).as_slice()
                && row.rounds.len() > 1
            {
                text += &format!(" ({least:.decimals$}–{most:.decimals$})");
            }
            text += " |";
        }
    }
    text
}

pub(crate) fn json(columns: &[Column], rows: &[Row]) -> Value {
    let rows = rows.iter().map(|row| {
        let figures = columns.iter().enumerate().map(|(index, column)| {
            let rounds: Vec<f64> = row.rounds.iter().filter_map(|round| round.get(index)).copied().collect();
            (column.name.to_owned(), json!({ "median": row.median(index), "rounds": rounds }))
        });
        (row.name.clone(), Value::Object(figures.collect()))
    });
    Value::Object(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_figure_or_the_mean_of_the_two_in_the_middle() {
        let row = |figures: &[f64]| Row {
            name: "row".into(),
            rounds: figures.iter().map(|figure| vec![*figure]).collect(),
        };
        assert_eq!(row(&[3.0, 1.0, 2.0]).median(0), 2.0);
        assert_eq!(row(&[4.0, 1.0, 2.0, 3.0]).median(0), 2.5);
        assert_eq!(row(&[7.0]).median(0), 7.0);
    }

    #[test]
    fn a_table_has_a_range_where_there_are_several_rounds() {
        let columns = [Column { name: "events/s", decimals: 0 }];
        let rows = [Row { name: "limit".into(), rounds: vec![vec![1.0], vec![3.0], vec![2.0]] }];
        assert_eq!(table(&columns, &rows), "| | events/s |\n|---|---|\n| limit | 2 (1–3) |");
    }
}
