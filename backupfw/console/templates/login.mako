<%inherit file="base.mako"/>
<%def name="title()">Log in</%def>
<article class="narrow">
<h1>Log in</h1>
% if not private:
<p role="alert">What you enter here could be read on its way. Use the console over https, or on the machine itself. Behind a proxy that ends TLS, the service
must be told so: <code>[api] enable_proxy_headers_parsing</code>.</p>
% else:
% if problem:
<p role="alert">${problem}</p>
% endif
<form method="post" action="${base}/login">
<input type="hidden" name="next" value="${after}">
% for field in login.fields:
<label>${field.label}
<input name="${field.name}" type="${field.kind}" value="${field.value}" autocomplete="${field.autocomplete}" required${' autofocus' if loop.first else ''}>
</label>
% endfor
<button>Log in</button>
<p><small>${login.hint}</small></p>
</form>
% endif
</article>
