//! The picture as SVG: plain shapes and text, no script, no font file, readable on paper.

use std::fmt::Write as _;

use bitcoin::Amount;

use super::layout::BOX_WIDTH;
use super::{Box, Layout, Line, Output, Picture, Place, Shown};

const STYLE: &str = "\
text{font-family:Inter,'Helvetica Neue',Arial,'DejaVu Sans',sans-serif;fill:#1d2733}\
.title{font-size:23px;font-weight:700}.subtitle{font-size:13.5px;fill:#566473}\
.name{font-size:13px;font-weight:600}.amount{font-size:12.5px}\
.id{font-size:10.5px;fill:#64717f;font-family:'DejaVu Sans Mono',Menlo,Consolas,monospace}\
.block{font-size:10.5px;font-weight:700;fill:#fff}\
.on{fill:#e3f6ec;stroke:#12805c;stroke-width:2}\
.channel.on,.stock.on{fill:#fff3d6;stroke:#c98a06}\
.off{fill:#fafbfc;stroke:#b3bdc7;stroke-width:1.3;stroke-dasharray:5 4}\
.off-text text{fill:#7a8793}\
.badge{fill:#12805c}.line{fill:none}\
.line-on{stroke:#12805c;stroke-width:2.4}\
.line-off{stroke:#c3ccd4;stroke-width:1.4;stroke-dasharray:5 4}\
.legend{font-size:12px;fill:#566473}";

/// Draws it.
pub fn svg(picture: &Picture) -> String {
    let layout = Layout::of(picture);
    let (width, height) = (layout.width, layout.height);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text class=\"title\" x=\"40\" y=\"50\">{title}</text>\n\
         <text class=\"subtitle\" x=\"40\" y=\"76\">{subtitle}</text>\n",
        title = escape(&picture.title),
        subtitle = escape(&picture.subtitle),
    );
    // Lines of the chain over the others, boxes over all.
    for on_chain in [false, true] {
        for line in layout.lines.iter().filter(|it| it.on_chain == on_chain) {
            draw_line(&mut out, line);
        }
    }
    for it in &layout.boxes {
        match it {
            Box::Transaction(place, shown) => draw_transaction(&mut out, *place, shown),
            Box::Backstop(place, shown) => draw_backstop(&mut out, *place, shown),
            Box::Output(place, output) => draw_output(&mut out, *place, output),
        }
    }
    draw_legend(&mut out, height - 36);
    out.push_str("</svg>\n");
    out
}

fn draw_line(out: &mut String, line: &Line) {
    let ((x1, y1), (x2, y2)) = (line.from, line.to);
    let middle = (x1 + x2) / 2;
    let class = on_off(line.on_chain);
    let _ = writeln!(
        out,
        "<path class=\"line line-{class}\" d=\"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}\"/>"
    );
}

fn draw_transaction(out: &mut String, place: Place, shown: &Shown) {
    let on_chain = shown.block.is_some();
    let amount = sat(shown.amount);
    open(out, place, "tx", on_chain, 8);
    text(out, "name", place.x + 10, place.y + 19, &shown.name);
    text(out, "amount", place.x + 10, place.y + 35, &amount);
    let id = match (shown.txid, shown.delay) {
        (None, _) => String::new(),
        (Some(txid), 0) => short(&txid.to_string()),
        (Some(txid), delay) => format!("{} · {delay} bl", short(&txid.to_string())),
    };
    text(out, "id", place.x + 10, place.y + 49, &id);
    if let Some(height) = shown.block {
        draw_badge(out, place, height);
    }
    out.push_str("</g>\n");
}

fn draw_badge(out: &mut String, place: Place, height: u32) {
    let label = format!("block {height}");
    let width = 16 + 6 * label.len() as u32;
    let (x, y) = (place.x + BOX_WIDTH - width + 8, place.y - 9);
    let _ = writeln!(
        out,
        "<rect class=\"badge\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"17\" rx=\"8.5\"/>\
         <text class=\"block\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
        x + width / 2,
        y + 12,
    );
}

fn draw_backstop(out: &mut String, place: Place, shown: &Shown) {
    open(out, place, "backstop", shown.block.is_some(), 13);
    text(out, "legend", place.x + 12, place.y + 17, &shown.name);
    if let Some(height) = shown.block {
        draw_badge(out, place, height);
    }
    out.push_str("</g>\n");
}

fn draw_output(out: &mut String, place: Place, output: &Output) {
    let class = if output.is_channel {
        "channel"
    } else {
        "stock"
    };
    open(out, place, class, output.on_chain, 18);
    let down = if output.is_channel { 9 } else { 0 };
    text(out, "name", place.x + 18, place.y + 17 + down, &output.name);
    let amount = sat(output.amount);
    text(out, "amount", place.x + 18, place.y + 32 + down, &amount);
    out.push_str("</g>\n");
}

/// A group with its frame; the caller closes it.
fn open(out: &mut String, place: Place, class: &str, on_chain: bool, radius: u32) {
    let state = on_off(on_chain);
    let Place { x, y, height } = place;
    let _ = writeln!(
        out,
        "<g class=\"{state}-text\"><rect class=\"{class} {state}\" x=\"{x}\" y=\"{y}\" \
         width=\"{BOX_WIDTH}\" height=\"{height}\" rx=\"{radius}\"/>"
    );
}

fn draw_legend(out: &mut String, y: u32) {
    let entries = [
        ("tx on", "transaction in a block"),
        ("channel on", "output on chain"),
        ("tx off", "signed and kept, on no chain"),
    ];
    let mut x = 40;
    for (class, words) in entries {
        let _ = writeln!(
            out,
            "<g class=\"key\"><rect class=\"{class}\" x=\"{x}\" y=\"{}\" width=\"30\" \
             height=\"18\" rx=\"6\"/></g>",
            y - 13
        );
        text(out, "legend", x + 40, y, words);
        x += 70 + 7 * words.len() as u32;
    }
    let words = "n bl: waits n blocks after its parent. Every transaction pays its own fee.";
    text(out, "legend", x, y, words);
}

fn text(out: &mut String, class: &str, x: u32, y: u32, words: &str) {
    let words = escape(words);
    let _ = writeln!(
        out,
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{words}</text>"
    );
}

fn on_off(on_chain: bool) -> &'static str {
    if on_chain { "on" } else { "off" }
}

/// `1234567` as `1,234,567 sat`.
fn sat(amount: Amount) -> String {
    format!("{} sat", super::super::table::thousands(amount.to_sat()))
}

fn short(txid: &str) -> String {
    format!("{}…{}", &txid[..6], &txid[txid.len() - 4..])
}

fn escape(words: &str) -> String {
    words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
