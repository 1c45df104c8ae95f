//! The page of `attn example`; what its script does is tested in a browser, by `tests/browser/example.py`.

use serde_json::json;

use crate::support::Space;

#[test]
fn the_page_of_the_example_is_one_file_with_its_numbers() {
    let space = Space::new();
    space.write("pages/example.html", "an older page");
    let (printed, told) = space.told("example --out pages/example.html");
    assert_eq!((printed.as_str(), told.as_str()), ("", "wrote pages/example.html\n"));
    assert_eq!(space.entries("pages"), ["example.html"]);
    let page = space.read("pages/example.html");
    assert!(page.starts_with("<!doctype html>") && page.ends_with("</html>"), "{page}");
    for outside in ["http://", "https://", "src=", "@import", "{{"] {
        let mentions = page.matches(outside).count();
        // The name of SVG's elements, which is no address to load from.
        let names = if outside == "http://" { page.matches("http://www.w3.org/2000/svg").count() } else { 0 };
        assert_eq!(mentions, names, "{outside}");
    }
    let data = space.page_data("pages/example.html");
    assert_eq!(data["x"], json!([[1., 0., 2., 1.], [0., 2., 1., 1.], [1., 1., 0., 2.]]));
    assert_eq!(data["wv"][3], json!([0.3, 0.2, -0.1, 0.1]));
    assert_eq!(data["translation"], json!([0.5, -1., 0.3, 0.7]));
    assert_eq!(data["printed"]["scores"], json!([[1.4], [1.22, 1.32], [1.16, 0.89, 1.04]]));
}

#[test]
fn the_page_of_the_example_is_html_in_a_folder_that_exists() {
    let space = Space::new();
    for name in ["example.svg", "example", ".html", "example.html/x"] {
        let expected = format!("--out: expected a file whose name ends in .html, got {name}");
        space.refuses(&format!("example --out {name}"), &expected);
    }
    space.refuses("example --out missing/example.html", "cannot write missing/example.html");
    assert_eq!(space.entries("."), ["text.txt"]);
}
