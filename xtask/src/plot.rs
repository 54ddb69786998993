//! `./x bench --plot`: the table as bars.

use crate::bench::Figures;
use anyhow::{Context, Result};
use plotters::prelude::*;
use std::path::Path;

/// Draws ours as a part of stock for each kind, with a line where the two would be equal.
pub fn bars(file: &Path, stock: &Figures, ours: &Figures) -> Result<()> {
    let mut bars: Vec<(&str, f64)> = Vec::new();
    for (kind, stock) in stock {
        if let Some((_, ours)) = ours.iter().find(|(name, _)| name == kind).filter(|_| *stock > 0.0) {
            bars.push((kind, ours / stock));
        }
    }
    let height = 80 + 22 * bars.len() as u32;
    let area = SVGBackend::new(file, (900, height)).into_drawing_area();
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        area.fill(&WHITE)?;
        let most = bars.iter().map(|(_, ratio)| *ratio).fold(1.05, f64::max);
        let rows = bars.len() as f64;
        let mut chart = ChartBuilder::on(&area)
            .caption("hsave's share of stock kvm-amd's host instructions", ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(190)
            .build_cartesian_2d(0.0..most, 0.0..rows)?;
        chart.configure_mesh().disable_y_mesh().y_labels(0).draw()?;
        for (n, (kind, ratio)) in bars.iter().enumerate() {
            let y = rows - n as f64;
            chart.draw_series([Rectangle::new([(0.0, y - 0.85), (*ratio, y - 0.15)], BLUE.mix(0.6).filled())])?;
            let at = chart.backend_coord(&(0.0, y - 0.3));
            area.draw(&Text::new(format!("{kind} {ratio:.2}"), (8, at.1), ("sans-serif", 13)))?;
        }
        chart.draw_series([PathElement::new([(1.0, 0.0), (1.0, rows)], RED)])?;
        area.present()?;
        Ok(())
    };
    draw().map_err(|e| anyhow::anyhow!("{e}")).with_context(|| format!("drawing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_names_each_kind() {
        let file = std::env::temp_dir().join(format!("plot-test-{}.svg", std::process::id()));
        let figures = |cpuid, pio| vec![("cpuid".to_owned(), cpuid), ("pio".to_owned(), pio)];
        bars(&file, &figures(100.0, 200.0), &figures(25.0, 100.0)).unwrap();
        let svg = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(svg.contains("cpuid 0.25") && svg.contains("pio 0.50"), "{svg}");
    }
}
