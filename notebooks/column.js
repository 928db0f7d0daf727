// Shows a column of viewing.Viewer: hands its model, and a place on the page, to NiiVue's own code.
let niivue;

async function load(code, column) {
  const url = URL.createObjectURL(new Blob([code.get("text")], { type: "text/javascript" }));
  const { default: own } = await import(url); // anew for each column: the code keeps its canvas to itself
  URL.revokeObjectURL(url);
  column.once("destroy", await own.initialize({ model: column }));
  return own;
}

export default {
  async render({ model, el }) {
    const find = (name) => model.widget_manager.get_model(model.get(name).slice("IPY_MODEL_".length));
    const [code, column] = await Promise.all([find("code"), find("column")]);
    niivue ??= load(code, column);
    return (await niivue).render({ model: column, el });
  },
};
