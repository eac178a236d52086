// SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
//! The table and the plots of what benches/run has measured, and how that differs from another run.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use plotters::prelude::*;
use serde_json::Value;

/// What a call may cost more than it did, as a share of what the same call costs without any
/// program in the same boot: another kernel of the series may have moved that.
const TOLERANCE: f64 = 0.05;
const NO_PROGRAM: &str = "no program";

pub type Error = Box<dyn std::error::Error>;

/// Figures of one kernel: kind, name, case, in the order in which they were measured.
struct Figures {
    used: Value,
    all: Vec<Value>,
}

impl Figures {
    fn read(path: &Path) -> Result<Self, Error> {
        let text =
            fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let mut all = text
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<Vec<Value>, _>>()?;
        let used = all.remove(0);
        Ok(Self { used, all })
    }

    fn of(&self, kind: &str) -> impl Iterator<Item = (&str, &str, &Value)> {
        let kind = kind.to_string();
        self.all.iter().filter_map(move |figure| {
            (figure["kind"] == *kind)
                .then(|| Some((figure["name"].as_str()?, figure["case"].as_str()?, figure)))?
        })
    }

    fn median(&self, kind: &str, name: &str, case: &str) -> Option<f64> {
        self.of(kind)
            .find(|(n, c, _)| (*n, *c) == (name, case))
            .and_then(|(_, _, figure)| figure["median"].as_f64())
    }

    /// The names or cases of a kind, each once, in order.
    fn distinct(&self, kind: &str, of: fn((&str, &str)) -> String) -> Vec<String> {
        let mut all = Vec::new();
        for (name, case, _) in self.of(kind) {
            let word = of((name, case));
            if !all.contains(&word) {
                all.push(word);
            }
        }
        all
    }

    fn kernel(&self) -> &str {
        self.used["kernel"].as_str().unwrap_or("?")
    }

    /// A table of one kind: a row a name, a column a case.
    fn table(&self, kind: &str) -> String {
        let names = self.distinct(kind, |(name, _)| name.into());
        let cases = self.distinct(kind, |(_, case)| case.into());
        let mut text = format!(
            "| | {} |\n|---|{}\n",
            cases.join(" | "),
            "---:|".repeat(cases.len())
        );
        for name in names {
            let cells = cases.iter().map(|case| {
                let figure = self.of(kind).find(|(n, c, _)| (*n, *c) == (&name, case));
                figure.map_or(String::new(), |(_, _, figure)| cell(figure))
            });
            text += &format!("| {name} | {} |\n", cells.collect::<Vec<_>>().join(" | "));
        }
        text
    }

    /// A table with the cases as rows, where there are many of them.
    fn list(&self, kind: &str) -> String {
        let mut text = "| | | median (middle half) |\n|---|---|---:|\n".to_string();
        for (name, case, figure) in self.of(kind) {
            text += &format!("| {name} | {case} | {} |\n", cell(figure));
        }
        text
    }
}

/// The median, and where half of all are, unless that is the same.
fn cell(figure: &Value) -> String {
    let number = |field: &str| figure[field].as_f64().unwrap_or(f64::NAN);
    let digits = if number("median") < 10.0 { 1 } else { 0 };
    let text = |value: f64| format!("{value:.digits$}");
    let [low, median, high] = ["low", "median", "high"].map(|field| text(number(field)));
    match low == high {
        true => median,
        false => format!("{median} ({low}–{high})"),
    }
}

/// Writes the table and the plots of all kernels there.
pub fn draw(dir: &Path) -> Result<(), Error> {
    let mut files: Vec<_> = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    files.sort();
    let mut text = String::from(
        "<!-- made by `make bench` -->\n# What lsm-nice costs\n\nInstructions of the guest, which its \
         clock counts (QEMU `-icount`), unless a row says otherwise: the median of 15 batches, and in \
         brackets the middle half where they differ; 7 starts. Each kernel is one boot.\n",
    );
    for file in &files {
        let figures = Figures::read(file)?;
        let stem = file.file_stem().unwrap_or_default().to_string_lossy();
        let used = |field: &str| figures.used[field].as_str().unwrap_or("?").to_string();
        text += &format!(
            "\n## Linux {}\n\nQEMU {}, rustc {}, clang {}.\n",
            used("kernel"),
            used("qemu"),
            used("rustc"),
            used("clang")
        );
        for (kind, title, as_table) in [
            (
                "call",
                "One call, by a caller that is or is not guarded",
                true,
            ),
            ("fork", "A child, from the call to its end", true),
            (
                "scale",
                "One setpriority(2) below the floor, by what is guarded",
                false,
            ),
            (
                "start",
                "lsm-nice beside minimal loaders of the same programs",
                true,
            ),
            (
                "events",
                "100,000 refusals in a row, by the size of the ring buffer",
                true,
            ),
        ] {
            let table = if as_table {
                figures.table(kind)
            } else {
                figures.list(kind)
            };
            text += &format!("\n### {title}\n\n{table}");
        }
        calls(&figures, &dir.join(format!("calls-{stem}.svg")))?;
        starts(&figures, &dir.join(format!("starts-{stem}.svg")))?;
        scale(&figures, &dir.join(format!("scale-{stem}.svg")))?;
        text += &format!(
            "\n![cost of a call](calls-{stem}.svg)\n![by number of the guarded](scale-{stem}.svg)\n\
             ![start](starts-{stem}.svg)\n"
        );
    }
    fs::write(dir.join("README.md"), text)?;
    Ok(())
}

/// Bars side by side: a group a name, a colour a case.
fn bars(path: &Path, title: &str, groups: &[(String, Vec<(String, f64)>)]) -> Result<(), Error> {
    let height = 60
        + 24 * groups
            .iter()
            .map(|(_, bars)| bars.len() as u32 + 1)
            .sum::<u32>();
    let root = SVGBackend::new(path, (900, height)).into_drawing_area();
    root.fill(&WHITE)?;
    root.titled(title, ("sans-serif", 18))?;
    let most = groups
        .iter()
        .flat_map(|(_, bars)| bars.iter().map(|(_, value)| *value))
        .fold(1.0, f64::max);
    let text = ("sans-serif", 13).into_font();
    let mut y = 40;
    for (name, bars) in groups {
        root.draw_text(name, &text.clone().into(), (10, y))?;
        y += 20;
        for (at, (case, value)) in bars.iter().enumerate() {
            let width = (value / most * 500.0) as i32;
            let colour = Palette99::pick(at).filled();
            root.draw(&Rectangle::new([(260, y), (260 + width, y + 14)], colour))?;
            root.draw_text(case, &text.clone().into(), (20, y))?;
            root.draw_text(
                &format!("{value:.0}"),
                &text.clone().into(),
                (268 + width, y),
            )?;
            y += 24;
        }
        y += 4;
    }
    root.present()?;
    Ok(())
}

fn calls(figures: &Figures, path: &Path) -> Result<(), Error> {
    let cases = figures.distinct("call", |(_, case)| case.into());
    let groups = ["setpriority allowed", "setpriority forbidden"].map(|name| {
        let bars = cases
            .iter()
            .filter_map(|case| Some((case.clone(), figures.median("call", name, case)?)));
        (format!("{name} by the floor"), bars.collect())
    });
    let title = format!("Instructions of one call, Linux {}", figures.kernel());
    bars(path, &title, &groups)
}

fn starts(figures: &Figures, path: &Path) -> Result<(), Error> {
    let mut groups: BTreeMap<String, Vec<(String, f64)>> = BTreeMap::new();
    for (name, case, figure) in figures.of("start") {
        let value = figure["median"].as_f64().unwrap_or_default();
        if name.ends_with("ms") {
            groups
                .entry(name.into())
                .or_default()
                .push((case.into(), value));
        }
    }
    let title = format!("Start and end, Linux {}", figures.kernel());
    bars(path, &title, &Vec::from_iter(groups))
}

/// Cost by the number of guarded processes, on a logarithmic axis.
fn scale(figures: &Figures, path: &Path) -> Result<(), Error> {
    let root = SVGBackend::new(path, (900, 360)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(
            format!(
                "Instructions of setpriority(2) below the floor, Linux {}",
                figures.kernel()
            ),
            ("sans-serif", 18),
        )
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d((1.0..10_000.0).log_scale(), 0.0..1500.0)?;
    chart.configure_mesh().x_desc("guarded processes").draw()?;
    for (at, who) in ["guarded", "not guarded"].into_iter().enumerate() {
        let points = [1, 10, 1000, 10_000].into_iter().filter_map(|size| {
            let case = format!("{who}, {size} guarded");
            let median = figures.median("scale", "setpriority forbidden", &case)?;
            Some((f64::from(size), median))
        });
        let colour = Palette99::pick(at).to_rgba();
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(format!("caller {who}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour));
    }
    chart.configure_series_labels().border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}

/// Fails where a call costs more than it did.
pub fn compare(base: &Path, new: &Path) -> Result<ExitCode, Error> {
    let (base, new) = (Figures::read(base)?, Figures::read(new)?);
    let (mut worse, mut seen) = (0, 0);
    for (name, case, figure) in new.of("call") {
        let before = base
            .median("call", name, case)
            .ok_or(format!("the baseline has no {name}, {case}"))?;
        let floor = |figures: &Figures| {
            let median = figures.median("call", name, NO_PROGRAM);
            median.ok_or(format!("nothing of {name} without a program"))
        };
        let now = figure["median"]
            .as_f64()
            .ok_or("a figure without a median")?;
        // the least of a call that jumps by itself, such as socket(2), is what repeats
        let least = figure["least"].as_f64().unwrap_or(now);
        let (now, before) = (now.min(least.max(before)), before);
        let change = (now / floor(&new)?) / (before / floor(&base)?) - 1.0;
        seen += 1;
        if change > TOLERANCE {
            worse += 1;
            println!(
                "worse: {name}, {case}: {now:.0} instructions, was {before:.0} ({:+.1} %)",
                change * 100.0
            );
        }
    }
    let expected = base.of("call").count();
    println!(
        "{seen} figures on Linux {}, {worse} worse by more than 5 %",
        new.kernel()
    );
    if seen != expected {
        return Err(format!("{seen} figures, and the baseline has {expected}").into());
    }
    Ok(if worse == 0 && seen > 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
