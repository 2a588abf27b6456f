"use strict";
// Nothing but our own documents is ever loaded: no validator on the web, no document named in the address bar.
// An ingress may serve us below a prefix: this page stands at PREFIX/docs.
const prefix = location.pathname.replace(/\/docs\/?$/, "");
const documents = JSON.parse(document.getElementById("documents").textContent)
  .map(({name, url}) => ({name, url: `${location.origin}${prefix}/${url}`}));
let shown;  // what the last request tried out from our own document had for an Authorization
window.ui = SwaggerUIBundle({
  urls: documents,
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIStandalonePreset],
  plugins: [SwaggerUIBundle.plugins.DownloadUrl],
  layout: "StandaloneLayout",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  defaultModelsExpandDepth: -1,
  validatorUrl: null,
  queryConfigEnabled: false,
  requestInterceptor(request) {
    const url = new URL(request.url, location.origin);
    if (url.origin !== location.origin) return request;
    if (!url.pathname.startsWith(`${prefix}/`)) request.url = `${url.origin}${prefix}${url.pathname}${url.search}`;
    if (request.loadSpec) return request;
    // The engine's own document knows nothing of our keys: the one given to ours serves there too.
    if (window.ui.specSelectors.url() === documents[0].url) shown = request.headers.Authorization;
    else if (shown) request.headers.Authorization ??= shown;
    return request;
  },
});
