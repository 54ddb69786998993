//! The picture in the README: what `./x bench` has written into docs/performance.md, as bars.

use anyhow::{Context, Result, ensure};
use plotters::prelude::*;
use std::path::Path;

/// What is shown, of all that is measured: the exits that guests have most, and what an operator waits for.
const SHOWN: [(&str, &str); 12] = [
    ("cpuid", "CPUID"),
    ("rdmsr", "RDMSR"),
    ("x2apic-eoi", "EOI (x2APIC)"),
    ("tsc-deadline-set", "timer set"),
    ("tsc-deadline-hlt", "timer ends HLT"),
    ("ipi-and-wake", "IPI wakes a vCPU"),
    ("vmmcall", "hypercall"),
    ("pio-in-kernel", "port, in the kernel"),
    ("pio-out-to-user", "port, in the VMM"),
    ("mmio-write-to-user", "MMIO, in the VMM"),
    ("npf-first-touch-4k", "page fault, 4 KiB"),
    ("linux-boot-kernel", "a boot of Linux"),
];

/// Each row of the first table that is shown, as a part of stock.
fn ratios(page: &str) -> Result<Vec<(&'static str, f64)>> {
    let ratio = |kind: &str| {
        let row = page.lines().find_map(|line| line.strip_prefix("| ")?.strip_prefix(kind)?.strip_prefix(" | "))?;
        let mut figures = row.split(" | ").map(|word| word.parse::<f64>().ok());
        let (stock, ours) = (figures.next()??, figures.next()??);
        (stock > 0.0).then_some(ours / stock)
    };
    SHOWN
        .iter()
        .map(|(kind, name)| Ok((*name, ratio(kind).with_context(|| format!("docs/performance.md has no {kind}"))?)))
        .collect()
}

/// Draws ours as a part of stock for each kind that is shown, with a line where the two would be equal.
pub fn draw(file: &Path, page: &str) -> Result<()> {
    let bars = ratios(page)?;
    ensure!(!bars.is_empty(), "nothing is shown");
    let height = 80 + 22 * bars.len() as u32;
    let area = SVGBackend::new(file, (640, height)).into_drawing_area();
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        area.fill(&WHITE)?;
        let most = bars.iter().map(|(_, ratio)| *ratio).fold(1.05, f64::max);
        let rows = bars.len() as f64;
        let mut chart = ChartBuilder::on(&area)
            .caption("host instructions per exit: hsave as a part of stock kvm-amd (red line)", ("sans-serif", 15))
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
    use std::fs;

    /// `./x bench` draws it; who changes the list above does it by copying the file that this test leaves.
    #[test]
    fn the_picture_shows_what_the_page_says() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let file = root.join("target/performance.svg");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        draw(&file, &fs::read_to_string(root.join("docs/performance.md")).unwrap()).unwrap();
        let (drawn, there) =
            (fs::read_to_string(&file).unwrap(), fs::read_to_string(root.join("docs/performance.svg")).unwrap());
        assert!(drawn.contains("CPUID 0.09"), "{drawn}");
        assert!(drawn == there, "docs/performance.svg is not {}", file.display());
    }

    #[test]
    fn a_row_is_a_part_of_stock() {
        let page: String = SHOWN.iter().map(|(kind, _)| format!("| {kind} | 200 | 50 | 0.25 | |\n")).collect();
        assert!(ratios(&page).unwrap().iter().all(|(_, ratio)| *ratio == 0.25));
        assert!(ratios(&page.replace("vmmcall", "other")).is_err());
    }
}
